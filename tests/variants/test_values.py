"""Losses worked out by hand."""

import math

import pytest
import torch

from dpobench import Pairs, Side
from dpobench.losses.registry import variants

# Three pairs. Log-probabilities of the tokens under the policy, then under the reference.
CHOSEN = [([-1.0, -2.0], [-1.5, -2.5]), ([-0.5], [-2.5]), ([-1.0, -1.0, -1.0, -1.0], [-1.0, -1.5, -0.5, -1.0])]
REJECTED = [([-3.0, -1.0, -1.0, -1.0], [-2.0, -1.0, -1.0, -1.0]), ([-4.0, -2.0], [-4.5, -4.5]), ([-7.0], [-3.0])]
# Sums of policy minus reference, chosen:   (-3) - (-4) = 1      -0.5 + 2.5 = 2       -4 + 4 = 0
# and rejected:                             (-6) - (-5) = -1     (-6) - (-9) = 3      -7 + 3 = -4
SUMS = ([1.0, 2.0, 0.0], [-1.0, 3.0, -4.0])
MARGINS = [2.0, -1.0, 4.0]
# Divided by 2, 1, 4 tokens: 1/2, 2, 0; divided by 4, 2, 1 tokens: -1/4, 3/2, -4.
MEAN_MARGINS = [0.75, 0.5, 4.0]


def side(rows) -> Side:
    width = 6
    fill = [[row + [0.0] * (width - len(row)) for row in column] for column in zip(*rows, strict=True)]
    policy, reference = torch.tensor(fill, dtype=torch.float64)
    mask = torch.tensor([[t < len(row[0]) for t in range(width)] for row in rows])
    return Side(policy.requires_grad_(), reference, mask)


@pytest.fixture
def three() -> Pairs:
    return Pairs(side(CHOSEN), side(REJECTED))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_margins_are_the_ones_worked_out_above(three):
    assert three.chosen.logratio.tolist() == SUMS[0]
    assert three.rejected.logratio.tolist() == SUMS[1]
    assert three.margin.tolist() == MARGINS
    assert three.mean_margin.tolist() == MEAN_MARGINS


def test_dpo_is_the_logistic_loss_of_the_margin(three):
    # beta 0.5: logits 1, -1/2, 2; losses log(1 + e^-1), log(1 + e^0.5), log(1 + e^-2).
    expected = [0.31326168751822286, 0.9740769841801067, 0.12692801104297263]
    assert [math.log1p(math.exp(-0.5 * m)) for m in MARGINS] == pytest.approx(expected, rel=1e-15)
    assert variants.get("dpo").bind(beta=0.5)(three).tolist() == pytest.approx(expected, rel=1e-14)


def test_dpo_pulls_each_token_by_beta_times_the_chance_of_being_wrong(three):
    variants.get("dpo").bind(beta=0.5)(three).sum().backward()
    for row, margin in enumerate(MARGINS):
        slope = 0.5 * sigmoid(-0.5 * margin)
        assert three.chosen.policy.grad[row, 0].item() == pytest.approx(-slope, rel=1e-14)
        assert three.rejected.policy.grad[row, 0].item() == pytest.approx(slope, rel=1e-14)
    assert three.chosen.policy.grad[1].tolist() == pytest.approx([-0.5 * sigmoid(0.5), 0, 0, 0, 0, 0])


def test_cdpo_mixes_the_two_labels(three):
    # flip 0.2, logits 1, -1/2, 2: 0.8 log(1 + e^-z) + 0.2 log(1 + e^z), and log(1 + e^z) = z + log(1 + e^-z),
    # so the loss is log(1 + e^-z) + 0.2 z: 0.313262 + 0.2, 0.974077 - 0.1, 0.126928 + 0.4.
    expected = [0.5132616875182228, 0.8740769841801067, 0.5269280110429726]
    assert variants.get("cdpo").bind(beta=0.5, flip=0.2)(three).tolist() == pytest.approx(expected, rel=1e-14)


def test_cdpo_stops_pulling_at_the_log_odds_of_a_right_label_over_beta():
    # flip 0.2: log(0.8 / 0.2) = log 4; over beta 0.5 that is a margin of 2 log 4.
    given = Pairs(side([([2 * math.log(4.0)], [0.0])]), side([([0.0], [0.0])]))
    variants.get("cdpo").bind(beta=0.5, flip=0.2)(given).sum().backward()
    assert given.chosen.policy.grad[0, 0].item() == pytest.approx(0.0, abs=1e-15)


def test_ipo_squares_the_distance_of_the_mean_margin_to_half_the_inverse_of_tau(three):
    # tau 0.25: target 2 nats a token. (0.75 - 2)^2, (0.5 - 2)^2, (4 - 2)^2.
    assert variants.get("ipo").bind(beta=0.25)(three).tolist() == [1.5625, 2.25, 4.0]


def test_ipo_divides_the_gradient_of_an_answer_by_its_length(three):
    variants.get("ipo").bind(beta=0.25)(three).sum().backward()
    # Slope 2 (mean margin - 2): -2.5, -3, 4; on a chosen token over 2, 1, 4, on a rejected one minus that over 4, 2, 1.
    assert three.chosen.policy.grad[:, 0].tolist() == [-1.25, -3.0, 1.0]
    assert three.rejected.policy.grad[:, 0].tolist() == [0.625, 1.5, -4.0]


def test_ipo_sum_squares_the_distance_of_the_summed_margin(three):
    # tau 0.25: target 2 nats. (2 - 2)^2, (-1 - 2)^2, (4 - 2)^2.
    assert variants.get("ipo_sum").bind(beta=0.25)(three).tolist() == [0.0, 9.0, 4.0]
    variants.get("ipo_sum").bind(beta=0.25)(three).sum().backward()
    assert three.chosen.policy.grad[:, 0].tolist() == [0.0, -6.0, 4.0]
    assert three.rejected.policy.grad[:, 0].tolist() == [0.0, 6.0, -4.0]


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("dpo", {}, math.log(2)),
        ("cdpo", {"flip": 0.3}, math.log(2)),
        ("ipo", {"beta": 0.1}, 25.0),
        ("ipo_sum", {"beta": 0.01}, 2500.0),
    ],
)
def test_the_start_value_is_what_the_formula_gives_at_margin_zero(name, params, expected):
    bound = variants.get(name).bind(**params)
    rows = [(row[1], row[1]) for row in CHOSEN], [(row[1], row[1]) for row in REJECTED]
    assert bound.start == pytest.approx(expected, rel=1e-14)
    assert bound(Pairs(side(rows[0]), side(rows[1]))).tolist() == pytest.approx([expected] * 3, rel=1e-14)
