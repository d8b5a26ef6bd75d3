"""What a loss makes of pairs outside training, against what its formula says."""

import numpy as np
import pytest

from dpobench.losses.registry import variants
from dpobench.losses.standalone import loss_preferences

# Log-probabilities a token under the reference; the policy moves them by the shifts below.
CHOSEN, REJECTED = np.full(4, -1.0, np.float32), np.full(2, -1.5, np.float32)


def ask(name, chosen_shift, rejected_shift, **params):
    """What a loss prefers of one pair whose four chosen and two rejected tokens moved by so many nats each."""
    policy = ([CHOSEN + np.float32(chosen_shift)], [REJECTED + np.float32(rejected_shift)])
    return loss_preferences({"variant": name, "params": params, "strength": "beta"}, policy, ([CHOSEN], [REJECTED]))


@pytest.mark.parametrize(
    ("name", "chosen", "rejected", "right"),
    [
        # Chosen 4 x 0.5 = 2 nats, rejected 2 x 0.6 = 1.2: the larger sum of log-ratios is the chosen one's.
        ("dpo", 0.5, 0.6, 1.0),
        # Chosen 4 x 0.2 = 0.8, rejected 2 x 0.6 = 1.2.
        ("dpo", 0.2, 0.6, 0.0),
        ("dpo", 0.3, 0.6, 0.5),
        # Without a reference and per token: -0.9 against -0.9 + 0.1, whatever the reference says.
        ("simpo", 0.1, 0.7, 0.0),
        ("simpo", 0.1, 0.5, 1.0),
    ],
)
def test_a_loss_prefers_the_answer_with_the_larger_reward(name, chosen, rejected, right):
    assert ask(name, chosen, rejected).prefers_chosen.tolist() == [right]


def test_likelihood_alone_prefers_the_likelier_answer():
    """Sums of log-probabilities: chosen 4 x -1 = -4, rejected 2 x -1.5 = -3."""
    assert ask("sft", 0, 0).prefers_chosen.tolist() == [0.0]
    # 4 x -0.5 = -2 against -3.
    assert ask("sft", 0.5, 0).prefers_chosen.tolist() == [1.0]


def test_a_logistic_loss_is_saturated_where_its_slope_is_below_a_hundredth_of_the_start():
    """Slope sigma(-beta m) over one half at the start: 0.01 is passed at beta m = ln 199 = 5.293."""
    # 4 tokens: margin 4 x shift, beta 0.1.
    assert ask("dpo", 52.8 / 4, 0, beta=0.1).saturated.tolist() == [0.0]
    assert ask("dpo", 53.1 / 4, 0, beta=0.1).saturated.tolist() == [1.0]
    assert ask("dpo", -53.1 / 4, 0, beta=0.1).saturated.tolist() == [0.0]


def test_a_target_loss_is_saturated_at_its_target_only():
    """Slope |m - 1/(2 beta)| over 1/(2 beta) at the start: below 0.01 between 4.95 and 5.05 nats a token for beta 0.1."""
    assert [ask("ipo", shift, 0, beta=0.1).saturated.item() for shift in (4.94, 4.96, 5.04, 5.06)] == [0, 1, 1, 0]


def test_what_needs_more_than_log_probabilities_has_no_preferences():
    answers = {name: ask(name, 0.5, 0.1) for name in variants.names()}
    for name, answer in answers.items():
        variant = variants.get(name)
        alone = not (variant.needs or variant.columns or variant.sees_whole_batch)
        assert (answer is not None) is alone, name
    assert sum(answer is not None for answer in answers.values()) > 10


def test_a_checkpoint_without_a_loss_has_no_preferences():
    logps = ([CHOSEN], [REJECTED])
    assert loss_preferences({}, logps, logps) is None
    elsewhere = {"variant": "somebody's", "params": {}, "strength": "beta"}
    assert loss_preferences(elsewhere, logps, logps) is None


def test_padding_does_not_count():
    """A pair next to a longer one has the preferences that it has alone."""
    long = np.full(9, -2.0, np.float32)
    policy = ([CHOSEN + np.float32(0.3), long], [REJECTED + np.float32(0.1), long - np.float32(1)])
    both = loss_preferences(
        {"variant": "simpo", "params": {}, "strength": "beta"}, policy, ([CHOSEN, long], [REJECTED, long])
    )
    alone = ask("simpo", 0.3, 0.1)
    assert both.prefers_chosen[0] == alone.prefers_chosen[0]
    assert both.saturated[0] == alone.saturated[0]
