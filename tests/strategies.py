"""Hypothesis strategies for what a loss is given."""

import torch
from hypothesis import strategies as st

from dpobench import Pairs, Side
from dpobench.losses.registry import variants
from dpobench.losses.variant import Bound

LOGP = st.floats(-12.0, 0.0, allow_nan=False, width=64)


@st.composite
def sides(draw: st.DrawFn, size: int, *, length: int | None = None, width: int = 4) -> Side:
    """`size` completions of 1 to `width` tokens, or all of one length."""
    lengths = [length or draw(st.integers(1, width)) for _ in range(size)]
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    values = draw(st.lists(LOGP, min_size=2 * sum(lengths), max_size=2 * sum(lengths)))
    policy, reference = torch.zeros(2, *mask.shape, dtype=torch.float64)
    policy[mask] = torch.tensor(values[::2], dtype=torch.float64)
    reference[mask] = torch.tensor(values[1::2], dtype=torch.float64)
    return Side(policy, reference, mask)


@st.composite
def pairs(draw: st.DrawFn, *, length: int | None = None) -> Pairs:
    """One to three pairs in float64; answers of any lengths, or all of one."""
    size = draw(st.integers(1, 3))
    return Pairs(draw(sides(size, length=length)), draw(sides(size, length=length)))


def swapped(given: Pairs) -> Pairs:
    """The same pairs with the preference turned round."""
    return Pairs(given.rejected, given.chosen)


def of_margins(margins: list[float], *, dtype: torch.dtype = torch.float64) -> Pairs:
    """Pairs of one-token answers whose chosen log-ratio is the margin; the chosen policy can be differentiated."""
    given = torch.tensor(margins, dtype=dtype)[:, None]
    mask = torch.ones_like(given, dtype=torch.bool)
    chosen = Side(given.clone().requires_grad_(), torch.zeros_like(given), mask)
    return Pairs(chosen, Side(torch.zeros_like(given).requires_grad_(), torch.zeros_like(given), mask))


def complete(given: Pairs, bound: Bound) -> Pairs:
    """The same pairs with everything that any loss declares, and the running statistics of a first batch."""
    shape, like = given.chosen.policy.shape, given.chosen.policy.detach()
    noise = torch.linspace(0.2, 0.8, shape.numel()).view(shape).to(like.dtype)
    values = {"noise": noise, "collision": -noise, "reference_entropy": noise, "reference_kl": noise}

    def told(side: Side) -> Side:
        near = {"extrapolated": 1.01 * side.policy.detach(), "interpolated": 0.99 * side.policy.detach()}
        return Side(side.policy, side.reference, side.mask, values | near)

    twice = torch.cat([like, like]), given.chosen.mask.repeat(2, 1)
    others = {
        "mismatched": Side(0.5 * twice[0], 0 * twice[0], twice[1]),
        "gold": Side(like, like * torch.nan, given.chosen.mask),
    }
    columns = dict.fromkeys(bound.variant.columns, noise[:, 0])
    pairs = Pairs(told(given.chosen), told(given.rejected), columns, {}, others)
    return pairs.with_statistics(bound.update(pairs, bound.initial()))


def of(name: str, batch: Pairs, **params: float) -> torch.Tensor:
    """What a registered loss makes of pairs, shape [B]."""
    return variants.get(name).bind(**params)(batch)


def same(found: torch.Tensor, expected: torch.Tensor, slack: float = 1e-12) -> None:
    """Equal to rounding. `torch.testing` is not used: it imports torch.distributed, four seconds."""
    assert found.shape == expected.shape
    assert bool(((found - expected).abs() <= slack * (1 + expected.abs())).all()), (found - expected).abs().max()
