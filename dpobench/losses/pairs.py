"""What a loss is given, the log-probabilities of B preference pairs and nothing else, and what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor, float64, tensor, where

PerToken: TypeAlias = Float[Tensor, "pairs tokens"]
PerPair: TypeAlias = Float[Tensor, "pairs"]
Scalar: TypeAlias = Float[Tensor, ""]


@dataclass(frozen=True)
class Side:
    """The chosen, or the rejected, completions of B pairs.

    Args:
        policy: log pi(y_t | x, y_<t) in nats, shape [B, T], differentiable; what stands at masked positions is ignored.
        reference: the same under the frozen reference, a constant.
        mask: true at the tokens that count (completion and end token), shape [B, T].
        extras: what the loss declared in `needs` (see `dpobench.losses.quantities`), shape [B, T] each; masked positions are ignored.

    Example:
        >>> import torch
        >>> policy, reference = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-1.5, -2.5, 0.0]])
        >>> side = Side(policy, reference, torch.tensor([[True, True, False]]))
        >>> side.logp, side.logratio, side.mean_logratio
        (tensor([-3.]), tensor([1.]), tensor([0.5000]))
    """

    policy: PerToken
    reference: PerToken
    mask: Bool[Tensor, "pairs tokens"]
    extras: Mapping[str, PerToken] = field(default_factory=dict)

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

    def total(self, extra: str) -> PerPair:
        """Sum over the completion of something declared in `needs`, shape [B]."""
        return where(self.mask, self.extras[extra], 0.0).sum(-1)

    def mean(self, extra: str) -> PerPair:
        """Mean over the completion's tokens of something declared in `needs`, shape [B]."""
        return self.total(extra) / self.length

    def detached(self) -> "Side":
        """The same numbers, cut off from the gradient."""
        extras = {name: value.detach() for name, value in self.extras.items()}
        return Side(self.policy.detach(), self.reference, self.mask, extras)

    def nll(self, weight: float = 1.0) -> "Ratio":
        """Negative log-likelihood, nats a token: a mean over all tokens of the global batch, to be returned in an `Objective`."""
        return Ratio(-self.logp, self.length, weight)


@dataclass(frozen=True)
class Ratio:
    """A term that is a ratio of two sums over the global batch, exact however the batch is cut.

    Args:
        numerator: shape [B].
        denominator: shape [B], positive; may depend on masks, columns and the reference, not on the policy.
        weight: of the term relative to the mean of the losses.

    Example:
        >>> import torch
        >>> ratio = Ratio(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 3.0]))
        >>> ratio.numerator.sum() / ratio.denominator.sum()
        tensor(1.5000)
    """

    numerator: PerPair
    denominator: PerPair
    weight: float = 1.0


@dataclass(frozen=True)
class Objective:
    r"""What a loss returns that is more than one value per pair: $\frac1B\sum_i l_i + \sum_k w_k \frac{\sum_i n_{ki}}{\sum_i d_{ki}}$.

    Args:
        losses: one value per pair, shape [B]; zeros where the ratios are all there is.
        ratios: further terms.

    Example:
        >>> import torch
        >>> ratio = Ratio(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 3.0]))
        >>> Objective(torch.tensor([1.0, 3.0]), (ratio,)).each()  # their mean is 2 + 6/4
        tensor([2., 5.])
    """

    losses: PerPair
    ratios: tuple[Ratio, ...] = ()

    @property
    def denominators(self) -> tuple[Tensor, ...]:
        """Sum of each ratio's denominators."""
        return tuple(ratio.denominator.sum() for ratio in self.ratios)

    def each(self, denominators: Sequence[Tensor] | None = None, pairs: int | None = None) -> PerPair:
        """Each pair's part, shape [B]: their mean over the global batch is the objective.

        Args:
            denominators: of the global batch; None if these pairs are all of it.
            pairs: number of pairs of the global batch; None likewise.
        """
        part, size = self.losses, len(self.losses) if pairs is None else pairs
        for ratio, whole in zip(self.ratios, self.denominators if denominators is None else denominators, strict=True):
            part = part + ratio.weight * size * ratio.numerator / whole
        return part


@dataclass(frozen=True)
class Pairs:
    """B preference pairs, each a chosen and a rejected answer.

    Args:
        chosen: the preferred completions.
        rejected: the others.
        columns: extra columns of the data set that the loss declared, shape [B] each.
        statistics: running statistics that the loss declared, after this batch's update; scalars, constant.
        others: further completions that the loss declared in `needs`.

    Example:
        >>> import torch
        >>> reference, mask = torch.tensor([[-2.0, -2.0]]), torch.tensor([[True, True]])
        >>> chosen, rejected = (Side(reference + gain, reference, mask) for gain in (0.5, -1.0))
        >>> Pairs(chosen, rejected).margin  # (0.5 + 0.5) - (-1 - 1)
        tensor([3.])
    """

    chosen: Side
    rejected: Side
    columns: Mapping[str, PerPair] = field(default_factory=dict)
    statistics: Mapping[str, Scalar] = field(default_factory=dict)
    others: Mapping[str, Side] = field(default_factory=dict)

    @property
    def gold(self) -> Side:
        """A third, best answer of the data set to each prompt; its reference is not computed. Needs "gold"."""
        return self.others["gold"]

    @property
    def mismatched(self) -> Side:
        """2B completions of other prompts under these, chosen ones first; constant. Needs "mismatched"."""
        return self.others["mismatched"]

    @cached_property
    def margin(self) -> PerPair:
        """Log-ratio of the chosen minus log-ratio of the rejected, nats, before beta."""
        return self.chosen.logratio - self.rejected.logratio

    @cached_property
    def mean_margin(self) -> PerPair:
        """The same difference of per-token log-ratios, nats per token."""
        return self.chosen.mean_logratio - self.rejected.mean_logratio

    def with_statistics(self, values: Mapping[str, float]) -> "Pairs":
        """The same pairs with running statistics: scalars in float64, where the log-probabilities are."""
        device = self.chosen.policy.device
        scalars = {name: tensor(value, dtype=float64, device=device) for name, value in values.items()}
        return replace(self, statistics=scalars)

    def detached(self) -> "Pairs":
        """The same numbers, cut off from the gradient."""
        others = {name: side.detached() for name, side in self.others.items()}
        return Pairs(self.chosen.detached(), self.rejected.detached(), self.columns, self.statistics, others)

    def __len__(self) -> int:
        return int(self.chosen.policy.shape[0])
