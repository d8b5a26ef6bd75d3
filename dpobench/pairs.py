"""What a loss is given: the log-probabilities of B preference pairs, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor, where

PerToken: TypeAlias = Float[Tensor, "pairs tokens"]
PerPair: TypeAlias = Float[Tensor, "pairs"]


@dataclass(frozen=True)
class Side:
    """The chosen, or the rejected, completions of B pairs.

    Args:
        policy: log pi(y_t | x, y_<t) in nats, shape [B, T], differentiable; what stands at masked positions is ignored.
        reference: the same under the frozen reference, a constant.
        mask: true at the tokens that count (completion and end token), shape [B, T].
    """

    policy: PerToken
    reference: PerToken
    mask: Bool[Tensor, "pairs tokens"]

    @cached_property
    def logp(self) -> PerPair:
        """Log-probability of the whole completion under the policy, nats."""
        return where(self.mask, self.policy, 0.0).sum(-1)

    @cached_property
    def reference_logp(self) -> PerPair:
        """Log-probability of the whole completion under the reference, nats."""
        return where(self.mask, self.reference, 0.0).sum(-1)

    @cached_property
    def logratio(self) -> PerPair:
        """Policy minus reference, summed over the completion, nats."""
        return where(self.mask, self.policy - self.reference, 0.0).sum(-1)

    @cached_property
    def length(self) -> PerPair:
        """Number of tokens that count, at least 1."""
        return self.mask.sum(-1).to(self.policy.dtype)

    @cached_property
    def mean_logp(self) -> PerPair:
        """Log-probability per token, nats."""
        return self.logp / self.length

    @cached_property
    def mean_logratio(self) -> PerPair:
        """Log-ratio per token, nats."""
        return self.logratio / self.length


@dataclass(frozen=True)
class Pairs:
    """B preference pairs: chosen beside rejected.

    Args:
        chosen: the preferred completions.
        rejected: the others.
        columns: extra columns of the data set that the loss declared, shape [B] each.
    """

    chosen: Side
    rejected: Side
    columns: Mapping[str, PerPair] = field(default_factory=dict)

    @cached_property
    def margin(self) -> PerPair:
        """Log-ratio of the chosen minus log-ratio of the rejected, nats, before beta."""
        return self.chosen.logratio - self.rejected.logratio

    @cached_property
    def mean_margin(self) -> PerPair:
        """The same difference of per-token log-ratios, nats per token."""
        return self.chosen.mean_logratio - self.rejected.mean_logratio

    def __len__(self) -> int:
        return int(self.chosen.policy.shape[0])
