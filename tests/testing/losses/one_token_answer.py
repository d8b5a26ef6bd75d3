"""Divides by the spread of the tokens: 0 / 0 on a one-token answer."""

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def one_token_answer(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    side = pairs.chosen
    ratios = torch.where(side.mask, side.policy - side.reference, 0.0)
    spread = ratios.square().sum(-1) - side.mean_logratio.square() * side.length
    return -F.logsigmoid(beta * pairs.margin * (spread / (side.length - 1)).sqrt())
