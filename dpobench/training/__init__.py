"""The one training harness."""

__all__ = ["accelerate", "blocks", "gradient", "order", "reference", "run", "state", "train"]
