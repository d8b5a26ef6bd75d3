"""Takes noise of masked positions for noise of tokens."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), needs=("noise",))
def noise_of_padding(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin) * pairs.chosen.extras["noise"].amax(-1)
