"""What the reference's entropy changes is said not to know the reference."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), needs=("reference_entropy",), reference=False)
def entropy_called_no_reference(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    logits = beta * (pairs.chosen.logp - pairs.rejected.logp)
    return -F.logsigmoid(logits * pairs.chosen.mean("reference_entropy"))
