import csv

import pytest

from dpobench.analysis.components import measured
from dpobench.analysis.findings import read
from dpobench.analysis.power import lines
from dpobench.analysis.results import REFERENCE, load
from dpobench.report.sections.compute import compute
from dpobench.report.sections.statistics import letters_of, section
from dpobench.stats.crossed import crossed_mean


def findings(folder):
    return read(load(folder))


def table(shown, name):
    return next(t for t in shown.tables if t.name == name).frame.to_dict("records")


def test_a_planted_winner_shares_no_letter_and_the_others_do(planted):
    f = findings(planted)
    signs = letters_of(f)
    assert next(iter(signs)) == "ipo"
    assert signs["ipo"] == "a"
    assert signs["dpo"] == signs["cdpo"] == "b"
    rows = table(section(f), "all_pairs")
    assert {(row["first"], row["second"]) for row in rows if row["significant"]} == {("ipo", "dpo"), ("ipo", "cdpo")}
    assert len(rows) == 3


def test_letters_and_differences_agree(equal):
    f = findings(equal)
    signs = letters_of(f)
    for row in table(section(f), "all_pairs"):
        shared = set(signs[row["first"]]) & set(signs[row["second"]])
        assert bool(shared) == (row["p_adjusted"] >= f.results.alpha)
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        assert row["difference"] >= 0  # the better stands first


def test_equivalence_is_of_every_variant_but_the_control(planted):
    f = findings(planted)
    rows = {row["variant"]: row for row in table(section(f), "equivalence")}
    assert set(rows) == {"ipo", "cdpo"}
    assert rows["ipo"]["p_equivalence_adjusted"] > 0.9  # truly better by 0.12: not within 0.02
    assert rows["ipo"]["verdict"] == "different, not shown within 0.02"


def test_one_seed_is_reported_as_of_checkpoints(make):
    f = findings(make(seeds=(0,), betas=(0.1,), variants=("dpo", "ipo")))
    shown = section(f)
    assert "not of the methods" in shown.sentences[0]
    assert "a second seed comes before anything else" in shown.sentences[1]
    assert all(row["level"] == "checkpoint" for row in table(shown, "all_pairs"))
    assert not any(row["significant"] for row in table(shown, "all_pairs"))


def test_with_one_variant_there_is_no_section(make):
    assert section(findings(make(seeds=(0,), betas=(0.1,), variants=("dpo",)))) is None


def test_without_a_judge_the_metric_on_held_out_pairs_is_taken(make):
    f = findings(make(judge=False, variants=("dpo", "ipo"), seeds=(0, 1), betas=(0.1,), prompts=256))
    assert "held-out accuracy" in section(f).sentences[0]


def test_the_spread_of_single_verdicts_is_that_of_the_world(planted):
    # Verdicts of 0 and 1 around 0.7 +- 0.15, 6 % of them ties: about 0.21 x 0.94 less what prompts explain.
    measurement = measured(findings(planted))
    assert 0.12 < measurement.parts.residual < 0.20
    assert measurement.parts.seed**0.5 < 0.04
    assert (measurement.seeds, measurement.variants) == (3, 3)


def test_power_takes_the_spread_of_a_finished_experiment(planted):
    text = lines(source=planted, variants=3)
    assert text[0].startswith(f"Standard deviations, measured in {planted} on win-rate (3 variants, 3 seeds, ")


def test_power_says_what_one_seed_could_not_tell(make):
    text = lines(source=make(seeds=(0,), betas=(0.1,), variants=("dpo", "ipo")))
    assert "it had one seed, so the seeds' spread is the typical one" in text[0]


def test_differences_of_shares_in_the_tables_stay_within_one(make):
    f = findings(make(seeds=(0, 1), betas=(0.1,), prompts=24, advantage={"ipo": 0.25}))
    shown = section(f)
    for name in ("all_pairs", "equivalence"):
        for row in table(shown, name):
            assert -1 <= row["difference_low"] <= row["difference_high"] <= 1


@pytest.mark.parametrize("name", ["all_pairs", "equivalence", "variances", "designs"])
def test_tables_are_read_back_as_csv(planted, name):
    table = next(t for t in section(findings(planted)).tables if t.name == name)
    rows = list(csv.DictReader(table.csv().splitlines()))
    assert len(rows) == len(table.frame)
    assert all(int(row["n_prompts"]) > 0 for row in rows)


def test_shares_of_the_error_add_up_and_more_of_anything_lessens_it(planted):
    shown = section(findings(planted))
    assert sum(row["share"] for row in table(shown, "variances")) == pytest.approx(1.0)
    rows = {row["design"]: row for row in table(shown, "designs")}
    assert all(
        row["se"] < rows["as it is"]["se"] for name, row in rows.items() if name.startswith("four times the seeds")
    )
    assert rows["four times the prompts"]["se"] <= rows["twice the prompts"]["se"] <= rows["as it is"]["se"]


def test_what_was_gained_over_the_reference_knows_the_seeds(make):
    f = findings(make(seeds=(0, 1, 2), betas=(0.1,), variants=("dpo", "ipo"), prompts=256, seed_sd=0.08))
    c = f.chosen["ipo"]
    difference = f.difference(c.ids, [REFERENCE])
    # The reference ties with itself: what is gained is the win-rate less one half, as sure as the win-rate.
    expected = crossed_mean([f.results.table(f.ranking, c.ids, None, "test").to_numpy() - 0.5])
    assert (difference.value, difference.low, difference.high, difference.level) == (
        *(pytest.approx(getattr(expected, end)) for end in ("value", "low", "high")),
        "method",
    )
    prompts_alone = crossed_mean([f.results.table(f.ranking, c.ids, None, "test").to_numpy().mean(0)[None]])
    assert difference.se > 1.5 * prompts_alone.se
    row = compute(f).frame.set_index("variant").loc["ipo"]
    assert row["gain_per_hour_high"] / row["gain_per_hour"] == pytest.approx(difference.high / difference.value)
