"""The one training harness."""

__all__ = ["accelerate", "gradient", "log", "loss_inputs", "order", "reference", "run", "state", "train"]
