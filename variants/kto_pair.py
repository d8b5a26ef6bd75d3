"""KTO for paired data: the reference point of one side is the mean log-ratio of the other."""

from dpobench import Pairs, PerPair, loss


@loss(
    source="as implemented by early TRL (`kto_pair`), OpenRLHF (`VanillaKTOLoss`), SPPO and SamPO, after arXiv:2402.01306",
    beta_grid=(0.01, 0.05, 0.1, 0.5),
    couples_batch=True,
    start=0.5,
)
def kto_pair(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Half of $\sigma(-\beta(a - \bar b_+)) + \sigma(-\beta(\bar a_+ - b))$, with batch means that are 0 where negative.

    It needs no mismatched answers, but it is another loss than `kto`: the anchors are differentiated, so that every pair has a
    gradient on the answers of all others, in the same direction as on its two answers.

    Args:
        pairs: B pairs; log-ratios a of the chosen and b of the rejected, shape [B], in nats.
        beta: per nat; how fast an answer's value saturates as its log-ratio leaves the anchor.

    Returns: one loss per pair, shape [B], so that their mean is the mean over 2B examples; 1/2 wherever the policy still equals
        the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> kto_pair(pairs, beta=0.1)  # anchors 0 and 2: (sigmoid(-0.2) + sigmoid(-0.3)) / 2
        tensor([0.4379])
    """
    chosen, rejected = pairs.chosen.logratio, pairs.rejected.logratio
    desirable = (beta * (rejected.mean().clamp(min=0) - chosen)).sigmoid()
    undesirable = (beta * (rejected - chosen.mean().clamp(min=0))).sigmoid()
    return (desirable + undesirable) / 2
