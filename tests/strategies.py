"""Hypothesis strategies for what a loss is given."""

import torch
from hypothesis import strategies as st

from dpobench import Pairs, Side

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
