"""What a loss may ask for beyond the log-probabilities of its pairs; computed only where a chosen variant declares it.

| need | what the loss finds | cost |
|---|---|---|
| `noise` | extra: uniform numbers in (0, 1), fixed by run seed, step and token | none |
| `collision` | extra: log of the sum of the policy's squared next-token probabilities, constant | the vocabulary once more |
| `reference_entropy` | extra: entropy of the reference's next token as a share of its maximum | once per experiment |
| `reference_kl` | extra: KL(reference || policy) of the next token, nats, differentiable | a live reference |
| `extrapolated` | extra: log-probability under logits (1 + epsilon) policy - epsilon reference, constant | a live reference |
| `interpolated` | extra: log-probability under logits (1 - epsilon) policy + epsilon reference, constant | a live reference |
| `mismatched` | `pairs.mismatched`: completions of other prompts under these, constant | two sequences more a pair |
| `gold` | `pairs.gold`: a third, best answer, from the data set's column `gold` | one sequence more a pair |

An extra stands in `side.extras["noise"]`, shape [B, T]; `side.total("noise")` and `side.mean("noise")` are its sum and mean.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Table = Float[Tensor, "C V"]
PerPosition = Float[Tensor, " C"]


@dataclass(frozen=True)
class Need:
    """One thing a loss may declare.

    Args:
        name: as declared.
        source: what it comes from: next-token distributions of the "policy", of the "reference" (once per experiment) or of
            "both" (a live reference); the other "pairs" of the data (once per experiment); the "data" set; the "step".
        compute: log-probabilities of the policy and of the reference over the vocabulary, shape [C, V], and the ids of the tokens
            that followed, shape [C], to one value a position; keyword-only arguments are hyper-parameters of the loss.
        differentiable: whether the gradient flows through it.
        start: what it is where the policy equals the reference: 0, the reference's log-probability, or what it is now.
    """

    name: str
    source: Literal["policy", "reference", "both", "pairs", "data", "step"]
    compute: Callable[..., PerPosition] | None = None
    differentiable: bool = False
    start: Literal["zero", "reference", "same"] = "same"


def collision(policy: Table, reference: None, targets: Int[Tensor, " C"]) -> PerPosition:
    """Log of the probability that two draws agree."""
    return torch.logsumexp(2 * policy, -1)


def reference_entropy(policy: None, reference: Table, targets: Int[Tensor, " C"]) -> PerPosition:
    """Entropy of the reference over its maximum, from 0 to 1."""
    return -(reference.exp() * reference).sum(-1) / math.log(reference.shape[-1])


def reference_kl(policy: Table, reference: Table, targets: Int[Tensor, " C"]) -> PerPosition:
    """KL(reference || policy), nats."""
    return (reference.exp() * (reference - policy)).sum(-1)


def extrapolated(policy: Table, reference: Table, targets: Int[Tensor, " C"], *, epsilon: float) -> PerPosition:
    """Log-probability after a step away from the reference, nats."""
    return _of((1 + epsilon) * policy - epsilon * reference, targets)


def interpolated(policy: Table, reference: Table, targets: Int[Tensor, " C"], *, epsilon: float) -> PerPosition:
    """Log-probability after a step towards the reference, nats."""
    return _of((1 - epsilon) * policy + epsilon * reference, targets)


def _of(logits: Table, targets: Int[Tensor, " C"]) -> PerPosition:
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")


NEEDS: Mapping[str, Need] = MappingProxyType(
    {
        need.name: need
        for need in (
            Need("noise", "step"),
            Need("collision", "policy", collision),
            Need("reference_entropy", "reference", reference_entropy),
            Need("reference_kl", "both", reference_kl, differentiable=True, start="zero"),
            Need("extrapolated", "both", extrapolated, start="reference"),
            Need("interpolated", "both", interpolated, start="reference"),
            Need("mismatched", "pairs"),
            Need("gold", "data"),
        )
    }
)
