"""What must hold before the first step."""

from collections.abc import Sequence

import torch

from dpobench.artifacts.records import Checks
from dpobench.data.tokens import TokenPair
from dpobench.errors import DpobenchError
from dpobench.losses.pairs import Pairs
from dpobench.losses.variant import Bound
from dpobench.models.protocols import LanguageModel
from dpobench.training.accelerate import Accelerator
from dpobench.training.loss_inputs import AuxiliaryState, lay_out, loss_pairs, pairs_of_first_step, policy_values


def check_start(
    model: LanguageModel,
    bound: Bound,
    rows: Sequence[TokenPair],
    accelerator: Accelerator,
    auxiliary: AuxiliaryState | None = None,
) -> Checks:
    """Before the first step the policy is the reference: log-ratios are 0 and the loss has its start value.

    Args:
        model: the prepared policy.
        bound: the loss.
        rows: some pairs with the reference's log-probabilities.
        accelerator: device and precision.
        auxiliary: layout of the pairs; live reference, where the loss declared it.

    Returns: the figures of the start.

    Raises:
        DpobenchError: they are not; the reference's log-probabilities belong to something else.
    """
    auxiliary = auxiliary or AuxiliaryState()
    with torch.no_grad(), accelerator.autocast():
        layout = lay_out(rows, bound, accelerator.device, packed=auxiliary.packed)
        values = policy_values(model, layout, bound, auxiliary.reference)
        pairs = loss_pairs(values, layout, bound.update(loss_pairs(values, layout), bound.initial()))
        loss, expected = float(bound(pairs).mean()), float(bound(pairs_of_first_step(bound, pairs)).mean())
    slack = 5e-2 if accelerator.mixed_precision == "bf16" else 2e-5
    lengths = pairs.chosen.length + pairs.rejected.length
    margin = float((pairs.margin.abs() / lengths).max())
    # Both sides may be off by the same amount, which no margin shows.
    drift = float(((pairs.chosen.logratio.abs() + pairs.rejected.logratio.abs()) / lengths).max())
    declared = bound.start
    if not drift <= slack:
        raise DpobenchError(
            f"at step 0 a log-ratio is {drift:.3g} nats a token, not 0: the reference log-probabilities are not this model's"
        )
    tolerance = _tolerance(bound, pairs, slack)
    for name, value in (("its value at policy = reference", expected), ("its declared start", declared)):
        if value is not None and not abs(loss - value) <= tolerance:
            raise DpobenchError(f"at step 0 {bound.variant.name} is {loss:.6g}; {name} is {value:.6g}")
    return Checks(start_margin=margin, start_loss=loss, start_declared=declared)


def _tolerance(bound: Bound, pairs: Pairs, slack: float) -> float:
    """How far the loss may move when every token's log-probability moves by `slack`."""
    start = pairs_of_first_step(bound, pairs)
    with torch.enable_grad():
        derivatives = torch.autograd.grad(
            bound(start).mean(), (start.chosen.policy, start.rejected.policy), allow_unused=True
        )
    return 1e-5 + slack * sum(float(one.abs().sum()) for one in derivatives if one is not None)
