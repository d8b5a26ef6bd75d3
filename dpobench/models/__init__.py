"""Everything that touches a transformer: loading, log-probabilities, packed rows, sampling."""

__all__ = [
    "activation_checkpointing",
    "adapters",
    "checkpoint",
    "generate",
    "lm_head",
    "logprobs",
    "packing",
    "protocols",
]
