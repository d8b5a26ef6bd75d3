"""What must hold before the first step."""

from collections.abc import Sequence
from typing import Any

import torch

from dpobench.data.tokens import TokenPair
from dpobench.errors import DpobenchError
from dpobench.losses.pairs import Pairs
from dpobench.losses.variant import Bound
from dpobench.training.blocks import Beside, block_of, pairs_of, started, values_of


def check_start(
    model: Any, bound: Bound, rows: Sequence[TokenPair], accelerator: Any, beside: Beside | None = None
) -> dict[str, float | None]:
    """Before the first step the policy is the reference: log-ratios are 0 and the loss has its start value.

    Returns: `start_margin` (largest margin per token, nats), `start_loss`, `start_declared`.

    Raises:
        DpobenchError: they are not; the reference's log-probabilities belong to something else.
    """
    with torch.no_grad(), accelerator.autocast():
        beside = beside or Beside()
        block = block_of(rows, bound, accelerator.device, packed=beside.packed)
        values = values_of(model, block, bound, beside.reference)
        pairs = pairs_of(values, block, bound.update(pairs_of(values, block), bound.initial()))
        loss, expected = float(bound(pairs).mean()), float(bound(started(bound, pairs)).mean())
    slack = 2e-5 if run_precision(accelerator) == "float32" else 5e-2
    lengths = pairs.chosen.length + pairs.rejected.length
    margin = float((pairs.margin.abs() / lengths).max())
    # Both sides may be off by the same amount, which no margin shows.
    drift = float(((pairs.chosen.logratio.abs() + pairs.rejected.logratio.abs()) / lengths).max())
    declared = bound.start
    if not drift <= slack:
        raise DpobenchError(
            f"at step 0 a log-ratio is {drift:.3g} nats a token, not 0: the reference log-probabilities are not this model's"
        )
    moved = _tolerance(bound, pairs, slack)
    for name, value in (("its value at policy = reference", expected), ("its declared start", declared)):
        if value is not None and not abs(loss - value) <= moved:
            raise DpobenchError(f"at step 0 {bound.variant.name} is {loss:.6g}; {name} is {value:.6g}")
    return {"start_margin": margin, "start_loss": loss, "start_declared": declared}


def run_precision(accelerator: Any) -> str:
    """Precision of the arithmetic."""
    return "bf16" if accelerator.mixed_precision == "bf16" else "float32"


def _tolerance(bound: Bound, pairs: Pairs, slack: float) -> float:
    """How far the loss may move when every token's log-probability moves by `slack`."""
    start = started(bound, pairs)
    with torch.enable_grad():
        slopes = torch.autograd.grad(
            bound(start).mean(), (start.chosen.policy, start.rejected.policy), allow_unused=True
        )
    return 1e-5 + slack * sum(float(slope.abs().sum()) for slope in slopes if slope is not None)
