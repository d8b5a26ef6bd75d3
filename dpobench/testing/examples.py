"""Pairs made from a few numbers, for examples and tests that are worked out by hand."""

from collections.abc import Mapping, Sequence

import torch

from dpobench.losses.pairs import Pairs, Side
from dpobench.losses.quantities import NEEDS


def example_pairs(
    chosen: Sequence[float],
    rejected: Sequence[float],
    *,
    tokens: tuple[int, int] = (1, 1),
    reference: float = -3.0,
    needs: Mapping[str, float] | None = None,
    columns: Mapping[str, Sequence[float]] | None = None,
    statistics: Mapping[str, float] | None = None,
) -> Pairs:
    """B pairs with given log-ratios, spread evenly over the tokens of each answer.

    Args:
        chosen: log-ratio (policy minus reference) of each chosen answer, nats, B of them.
        rejected: the same of the rejected answers.
        tokens: number of tokens of every chosen and of every rejected answer.
        reference: log-probability of each token under the reference, nats; of an answer, times its tokens.
        needs: what the loss declared in `needs`, alike for every token. "mismatched" and "gold" are answers of one token with
            this log-ratio.
        columns: what it declared in `columns`, B numbers each.
        statistics: what it declared in `running`.

    Returns: pairs in float32.

    Example:
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(2, 4))
        >>> pairs.margin, pairs.chosen.mean_logratio, pairs.rejected.logp
        (tensor([3.]), tensor([1.]), tensor([-13.]))
    """
    needs = needs or {}
    extras = {name: value for name, value in needs.items() if NEEDS[name].source not in ("pairs", "data")}
    others = {name: value for name, value in needs.items() if name not in extras}

    def side(logratios: Sequence[float], length: int, more: Mapping[str, float]) -> Side:
        base = torch.full((len(logratios), length), reference)
        policy = base + torch.tensor(logratios, dtype=base.dtype)[:, None] / length
        filled = {name: torch.full_like(base, value) for name, value in more.items()}
        return Side(policy, base, torch.ones_like(base, dtype=torch.bool), filled)

    return Pairs(
        side(chosen, tokens[0], extras),
        side(rejected, tokens[1], extras),
        columns={name: torch.tensor(values, dtype=torch.float32) for name, values in (columns or {}).items()},
        statistics={name: torch.tensor(value, dtype=torch.float64) for name, value in (statistics or {}).items()},
        others={
            name: side([value] * len(chosen) * (2 if name == "mismatched" else 1), 1, {})
            for name, value in others.items()
        },
    )
