"""Loss and gradients against the margin, held against numbers worked out by hand; and what is drawn of them."""

import math

import pytest
import torch

from dpobench.errors import UserError
from dpobench.gallery import curves, plots
from dpobench.losses.registry import LossRegistry, variants

MARGINS = torch.tensor([-30.0, -2.0, 0.0, 5.0, 20.0], dtype=torch.float64)


def of(name, **params):
    return curves.curve(variants.get(name), params, MARGINS)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_dpo_by_hand():
    # Loss log(1 + e^{-beta m}); gradient on the chosen -beta sigmoid(-beta m), on the rejected its opposite.
    curve = of("dpo", beta=0.3)
    assert curve.loss.tolist() == pytest.approx([math.log(1 + math.exp(-0.3 * m)) for m in MARGINS.tolist()])
    assert curve.chosen.tolist() == pytest.approx([-0.3 * sigmoid(-0.3 * m) for m in MARGINS.tolist()])
    assert curve.rejected.tolist() == pytest.approx([0.3 * sigmoid(-0.3 * m) for m in MARGINS.tolist()])
    assert curve.mirrored
    assert curve.target is None


def test_ipo_by_hand():
    # Per token: (m - 1/(2 tau))^2 with target 1/(2 * 0.05) = 10. A nat more of the sum over 50 tokens is 1/50 of the mean.
    curve = of("ipo", beta=0.05)
    assert curve.loss.tolist() == pytest.approx([(m - 10) ** 2 for m in MARGINS.tolist()])
    assert curve.chosen.tolist() == pytest.approx([2 * (m - 10) / 50 for m in MARGINS.tolist()])
    assert curve.target == pytest.approx(10)


def test_apo_zero_by_hand():
    # sigmoid(-beta a) + sigmoid(beta b), and the margin is split: a = m/2, b = -m/2, so the loss is 2 sigmoid(-beta m/2).
    curve = of("apo_zero", beta=0.1)
    each = [sigmoid(-0.05 * m) for m in MARGINS.tolist()]
    assert curve.loss.tolist() == pytest.approx([2 * p for p in each])
    assert curve.chosen.tolist() == pytest.approx([-0.1 * p * (1 - p) for p in each])


def test_sft_by_hand():
    # At margins up to 5 nats a token all tokens start from -(5/2 + 0.25) = -2.75; the chosen ones rise by half the margin.
    curve = curves.curve(variants.get("sft"), {}, torch.tensor([-5.0, 0.0, 5.0], dtype=torch.float64))
    assert curve.loss.tolist() == pytest.approx([5.25, 2.75, 0.25])
    # A mean over 50 tokens: 1/50 a nat of their sum. The rejected answer is not read.
    assert curve.chosen.tolist() == pytest.approx([-0.02] * 3)
    assert curve.rejected.tolist() == [0.0] * 3
    assert not curve.mirrored


def test_a_mixture_is_the_sum_of_the_curves_of_its_parts():
    mixed, dpo, cpo = of("dpo:0.5+cpo:2"), of("dpo"), of("cpo")
    for what in ("loss", "chosen", "rejected"):
        assert torch.allclose(getattr(mixed, what), 0.5 * getattr(dpo, what) + 2 * getattr(cpo, what), rtol=1e-12)


@pytest.mark.parametrize("name", ["dr_dpo", "aot", "beta_dpo", "tdpo1", "wpo", "eps_dpo", "sampo", "odpo", "ld_dpo"])
def test_a_loss_that_is_dpo_where_all_else_is_neutral_has_its_curve(name):
    # One pair a batch, needs as at policy = reference, a gap of one between the scores, equal lengths.
    assert torch.allclose(of(name, beta=0.1).loss, of("dpo", beta=0.1).loss, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "params", "by_hand"),
    [
        # ln((1 - flip) / flip) / beta = ln 9 / 0.1.
        ("cdpo", {"beta": 0.1, "flip": 0.1}, math.log(9) / 0.1),
        ("exo", {"beta": 0.5, "smoothing": 1e-3}, math.log(999) / 0.5),
        # 1 / (2 tau); two targets of 1 / (2 beta), one on either side.
        ("ipo_sum", {"beta": 0.01}, 50.0),
        ("sppo_hard", {"beta": 0.01}, 100.0),
        ("sppo_soft", {"beta": 0.01}, 100.0),
    ],
)
def test_targets_by_hand(name, params, by_hand):
    assert curves.target(variants.get(name), params) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("name", variants.names())
def test_the_gradient_changes_sign_where_a_target_is_declared_and_nowhere_else(name):
    variant = variants.get(name)
    if variant.spec.gradient != "free":
        assert (curves.target(variant, {}) is not None) == (variant.spec.gradient == "target")


@pytest.mark.parametrize("name", [*variants.names(), "dpo:0.8+bco_pair:0.2+sft"])
def test_every_loss_has_curves_that_fit_their_frame(name):
    family = curves.family(variants.get(name))
    default, margins = family.default, family.default.margins
    assert default.params == variants.get(name).arguments({})
    assert torch.equal(margins, -margins.flip(0))
    for curve in family.curves:
        assert all(values.isfinite().all() for values in (curve.loss, curve.chosen, curve.rejected))
    # No explosion hides the middle, and the target is in sight.
    inner = default.loss[len(margins) // 4 : -(len(margins) // 4)]
    assert float(default.loss.max() - default.loss.min()) <= 8.1 * float(inner.max() - inner.min())
    assert default.target is None or default.target < float(margins[-1])
    # The farthest of 50 tokens still leaves a probability below one.
    assert family.level + float(margins[-1]) / (2 if family.axis.per_token else 2 * curves.LENGTH) < 0


def test_the_margin_is_of_the_kind_that_the_loss_uses():
    assert curves.axis(variants.get("dpo")) == curves.Axis(per_token=False, reference=True)
    assert curves.axis(variants.get("ipo")) == curves.Axis(per_token=True, reference=True)
    assert curves.axis(variants.get("cpo")) == curves.Axis(per_token=False, reference=False)
    # Weights say nothing: the likelihood and the odds are means, the hinge of SLiC is one of sums.
    assert curves.axis(variants.get("sft")).per_token
    assert curves.axis(variants.get("orpo")).per_token
    assert not curves.axis(variants.get("slic_hf")).per_token
    assert curves.Axis(True, False).label == "margin: difference of mean log-probabilities (nats per token)"


def test_the_terminal_gets_the_default_and_its_neighbours_and_a_file_the_whole_grid():
    dpo = variants.get("dpo")
    assert [curve.params["beta"] for curve in curves.family(dpo).curves] == [0.05, 0.1, 0.3]
    assert [curve.params["beta"] for curve in curves.family(dpo, whole_grid=True).curves] == list(dpo.beta_grid)
    # A default at the end of its grid has one neighbour.
    assert [curve.params["beta"] for curve in curves.family(variants.get("simpo")).curves] == [2.0, 2.5]


def test_text_shows_each_value_in_its_cell():
    family = curves.family(variants.get("hinge"))
    lines = plots.terminal(family)
    start = lines.index("loss") + 1
    chart = [line[11:].ljust(plots.WIDTH) for line in lines[start : start + plots.HEIGHT]]
    numbers = {lines[start + row][:9].strip(): row for row in (0, 7, 14)}
    # beta 0.05 at up to 30 nats, beside 0.01 and 0.1: the highest value is 1 + 0.1 * 30 = 4, the lowest 0.
    assert family.default.margins[-1] == 30
    assert numbers == {"4": 0, "2": 7, "0": 14}
    # The default: 1 + 1.5 = 2.5 at the left end, 1 in the middle, 0 from 20 nats on; rows are 4/14 apart.
    rows = [round((4 - value) * 14 / 4) for value in (2.5, 1.0, 0.0)]
    assert [chart[row][column] for row, column in zip(rows, (0, 30, 60), strict=True)] == ["●"] * 3
    assert lines[start + plots.HEIGHT + 1].split() == ["-30", "-15", "0", "15", "30"]
    assert max(map(len, lines)) <= 80


def test_a_loss_of_two_answers_gets_a_third_chart_and_a_mirrored_one_a_sentence():
    assert "The gradient on the rejected answer is the same with the other sign." in plots.terminal(
        curves.family(variants.get("dpo"))
    )
    drawing = plots.terminal(curves.family(variants.get("cpo")))
    assert sum(line.startswith("gradient on the rejected answer: ") for line in drawing) == 1


def test_text_says_what_is_held_and_where_the_loss_is_least():
    arguments = "\n".join(plots.terminal(curves.family(variants.get("sppo_soft"))))
    assert "● beta = 0.001 (default), least loss at a margin of 1000" in arguments
    assert "Held: win_probability = 1." in arguments


@pytest.mark.parametrize("suffix", plots.SUFFIXES)
def test_a_figure_has_the_same_bytes_every_time(tmp_path, suffix):
    for name in ("one", "two"):
        plots.write(curves.family(variants.get("ipo"), whole_grid=True), tmp_path / f"{name}{suffix}")
    one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert one.startswith({".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix])


def test_a_figure_names_every_strength_the_targets_and_the_units(tmp_path):
    plots.write(curves.family(variants.get("ipo"), whole_grid=True), tmp_path / "ipo.svg")
    drawn = (tmp_path / "ipo.svg").read_text()
    # 1/(2 tau) for tau of 0.1, 0.5, 1, 3 and 10.
    for words in (
        "beta = 0.1 (default), least at 5",
        "beta = 0.5, least at 1",
        "beta = 1, least at 0.5",
        "beta = 3, least at 0.167",
        "beta = 10, least at 0.05",
        "nats per token",
        "log p summed over 50 tokens",
    ):
        assert words in drawn
    assert "dc:date" not in drawn


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    family = curves.family(variants.get("dpo"))
    with pytest.raises(UserError, match=r"ends in \.svg, \.png, \.pdf"):
        plots.write(family, tmp_path / "dpo.gif")
    with pytest.raises(UserError, match="No such file"):
        plots.write(family, tmp_path / "nowhere" / "dpo.svg")


def test_a_constant_loss_at_some_margins_can_be_drawn(tmp_path):
    file = tmp_path / "flat.py"
    file.write_text(
        '"""Flat."""\nfrom dpobench import loss\n\n\n@loss(source="none", beta_grid=(0.5, 1.0))\n'
        'def flat(pairs, *, beta: float = 1.0):\n    """Linear: the same gradient everywhere."""\n    return -beta * pairs.margin\n'
    )
    registry = LossRegistry()
    registry.add_file(file)
    lines = plots.terminal(curves.family(registry.get("flat")))
    # One gradient at each of two strengths: -1 and -0.5 fill a row each.
    start = lines.index("gradient on the chosen answer: d loss / d log p, per nat") + 1
    rows = [line for line in lines[start : start + plots.HEIGHT] if "●" in line or "○" in line]
    assert sorted(line.count("●") + line.count("○") for line in rows) == [plots.WIDTH] * 2
