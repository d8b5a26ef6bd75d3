"""What is asked for and the runs it unfolds into."""

import math

import pytest

from dpobench.errors import UnknownName, UserError
from dpobench.experiment.config import Experiment, merge, parse, set_path, unequal_trials
from dpobench.experiment.grids import parse_grids
from dpobench.experiment.validate import validate
from dpobench.losses.registry import variants
from dpobench.training.run import Recipe


def grids(betas=(), others=(), names=("dpo", "ipo")):
    return parse_grids(betas, others, {name: variants.get(name) for name in names})


def test_bare_beta_grid_gives_each_variant_its_own():
    found, warnings = grids(["auto"])
    assert found == {name: {"beta": variants.get(name).beta_grid} for name in ("dpo", "ipo")}
    assert warnings == []


def test_values_go_to_all_variants_and_a_foreign_unit_is_named():
    found, warnings = grids(["0.05,0.1"])
    assert found == {"dpo": {"beta": (0.05, 0.1)}, "ipo": {"beta": (0.05, 0.1)}}
    assert len(warnings) == 1
    assert "ipo" in warnings[0]
    assert "nats per token" in warnings[0]


def test_values_of_one_variant_win_whatever_the_order():
    for order in (["dpo=0.2", "auto"], ["auto", "dpo=0.2"]):
        found, _ = grids(order)
        assert found["dpo"] == {"beta": (0.2,)}
        assert found["ipo"] == {"beta": variants.get("ipo").beta_grid}


def test_other_parameters_have_grids_too():
    found, _ = grids(others=["cdpo.flip=0.1,0.2"], names=("cdpo",))
    assert found == {"cdpo": {"flip": (0.1, 0.2)}}


@pytest.mark.parametrize(
    ("betas", "others", "said"),
    [
        (["dop=0.1"], [], "Did you mean 'dpo'"),
        (["cdpo=0.1"], [], "add it to --variants"),
        (["0.1,x"], [], "'x'"),
        (["0.1,-1"], [], "outside (0, inf)"),
        (["nan"], [], "outside (0, inf)"),
        (["0.1,0.1"], [], "twice"),
        ([], ["dpo.gama=1"], "no parameter of dpo is called 'gama'"),
        ([], ["dpo=1"], "VARIANT.PARAMETER"),
    ],
)
def test_a_bad_grid_says_what_was_possible(betas, others, said):
    with pytest.raises(UserError) as caught:
        grids(betas, others)
    assert said in str(caught.value)


def test_runs_are_variants_times_grids_times_rates_times_seeds():
    experiment = Experiment(
        variants=("dpo", "cdpo"),
        grid={"cdpo": {"beta": (0.1, 0.3), "flip": (0.1, 0.2)}},
        seeds=(0, 1),
        learning_rates=(1e-4, 1e-3),
    )
    runs = experiment.runs("key")
    assert len(runs) == (1 + 4) * 2 * 2
    assert len({run.id for run in runs}) == len(runs)


def test_a_run_is_known_by_its_fields_alone():
    experiment = Experiment(variants=("dpo",))
    (run,) = experiment.runs("key")
    (again,) = experiment.model_copy(update={"evaluation": experiment.evaluation.model_copy(update={"draws": 3})}).runs(
        "key"
    )
    assert run.id == again.id  # scoring decides no weights
    for field, value in (
        ("seed", 1),
        ("learning_rate", 0.1),
        ("params", {"beta": 0.2}),
        ("reference", "other"),
        ("code", "x"),
        ("recipe", Recipe(batch=8)),
    ):
        assert run.model_copy(update={field: value}).id != run.id


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"variants": []}, "no variant"),
        ({"variants": ["dpo", "dpo"]}, "dpo is named twice"),
        ({"variants": ["dpo"], "seeds": [-1]}, "seeds"),
        ({"variants": ["dpo"], "control": "ipo"}, "'ipo'"),
        ({"variants": ["dpo"], "recipe": {"learning_rat": 1}}, "Did you mean 'recipe.learning_rate'"),
        ({"variants": ["dpo"], "recipe": {"learning_rate": 0}}, "greater than 0"),
        ({"variants": ["dpo"], "recipe": {"batch": "many"}}, "recipe.batch = 'many'"),
    ],
)
def test_impossible_settings_are_refused_by_name(tree, said):
    with pytest.raises(UserError) as caught:
        validate(parse(tree))
    assert said in str(caught.value)


def test_unknown_variant_gets_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'dpo'"):
        validate(Experiment(variants=("dppo",)))


def test_settings_are_laid_over_each_other():
    tree = merge({"recipe": {"batch": 8, "clip": 1.0}, "seeds": [0]}, {"recipe": {"batch": 16}, "seeds": [1, 2]})
    assert tree == {"recipe": {"batch": 16, "clip": 1.0}, "seeds": [1, 2]}
    set_path(tree, "recipe.learning_rate=5e-7")
    set_path(tree, "evaluation.judge=gold")
    assert tree["recipe"]["learning_rate"] == 5e-7
    assert tree["evaluation"] == {"judge": "gold"}
    with pytest.raises(UserError, match=r"section\.key=value"):
        set_path(tree, "recipe.batch")


def test_learning_rate_by_hand():
    # 10 steps, 20 % warm-up: 2 rising steps, then 8 falling from the peak towards 0.
    recipe = Recipe(warmup=0.2, schedule="linear")
    assert [recipe.rate(step, 10, 1.0) for step in range(4)] == pytest.approx([0.5, 1.0, 1.0, 7 / 8])
    assert Recipe(warmup=0.0, schedule="constant").rate(9, 10, 0.3) == 0.3
    assert Recipe(warmup=0.0, schedule="cosine").rate(5, 10, 1.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_unequal_numbers_of_configurations_are_named_and_equal_ones_are_not():
    def told(grid, **more):
        return unequal_trials(Experiment(variants=("dpo", "cdpo"), grid=grid, **more).runs("key"))

    # 3 betas of dpo; 2 betas x 2 flips of cdpo: 3 and 4 configurations, however many seeds and learning rates.
    uneven = {"dpo": {"beta": (0.1, 0.3, 0.5)}, "cdpo": {"beta": (0.1, 0.3), "flip": (0.1, 0.2)}}
    assert "(dpo 3, cdpo 4)" in told(uneven)
    assert told(uneven, seeds=(0, 1, 2)) == told(uneven)
    assert "(dpo 6, cdpo 8)" in told(uneven, learning_rates=(1e-4, 1e-3))
    # 4 and 2 x 2.
    even = {**uneven, "dpo": {"beta": (0.05, 0.1, 0.3, 0.5)}}
    assert told(even) is told({}) is told({}, seeds=(0, 1)) is None
