"""Weighted sums of registered losses, written as a name."""

import math

import pytest
import torch

from dpobench.errors import UnknownName, UserError
from dpobench.experiment import validate
from dpobench.experiment.config import Experiment
from dpobench.experiment.grids import parse_grids
from dpobench.losses.registry import LossRegistry, variants
from dpobench.testing import check
from tests.strategies import of_margins

MPO = "dpo:0.8+bco_pair:0.2+sft:1"


def test_a_mixture_is_the_weighted_sum_of_its_parts():
    pairs = of_margins([-1.0, 0.5, 3.0])
    found = variants.get("dpo:0.8+ipo_sum:0.2").bind(**{"dpo.beta": 0.3, "ipo_sum.beta": 0.5})(pairs)
    wanted = 0.8 * variants.get("dpo").bind(beta=0.3)(pairs) + 0.2 * variants.get("ipo_sum").bind(beta=0.5)(pairs)
    assert torch.allclose(found, wanted, rtol=1e-14, atol=0)


def test_a_weight_left_out_is_one():
    pairs = of_margins([-1.0, 0.5, 3.0])
    assert torch.equal(variants.get("dpo+hinge").bind()(pairs), variants.get("dpo:1+hinge:1.0").bind()(pairs))


def test_hyper_parameters_are_those_of_the_parts_and_the_strength_is_that_of_the_first():
    mixed = variants.get(MPO)
    assert set(mixed.parameters) >= {"dpo.beta", "bco_pair.beta", "sft.weight"}
    assert mixed.strength == "dpo.beta"
    assert mixed.beta_grid == variants.get("dpo").beta_grid
    with pytest.raises(UserError, match=r"dpo.beta = -1.0: outside \(0, inf\)"):
        mixed.bind(**{"dpo.beta": -1.0})
    with pytest.raises(UnknownName, match=r"Did you mean .dpo\.beta."):
        mixed.bind(beta=0.1)


def test_a_mixture_promises_no_more_than_its_parts_keep():
    assert variants.get("dpo+hinge").spec.gradient == "monotone"
    assert variants.get("dpo+ipo").spec.gradient == "free"
    assert variants.get("simpo+sft").spec.reference is False
    assert variants.get("dpo+aot").sees_whole_batch
    assert variants.get(MPO).keeps_statistics
    assert not variants.get("dpo+sft").sees_whole_batch
    assert variants.get("dpo+odpo:0.5").columns.keys() == variants.get("odpo").columns.keys()


def test_it_starts_where_its_parts_start_if_all_of_them_say_so():
    assert variants.get("dpo:2+hinge:0.5").bind().start == pytest.approx(2 * math.log(2) + 0.5)
    assert variants.get("dpo+sft").bind().start is None


def test_statistics_of_the_parts_are_separate():
    pairs = of_margins([1.0, 2.0])
    mixed, alone = variants.get("dpo:0.8+bco_pair:0.2").bind(), variants.get("bco_pair").bind()
    statistics, wanted = mixed.update(pairs, mixed.initial()), alone.update(pairs, alone.initial())
    assert statistics == {f"bco_pair.{key}": value for key, value in wanted.items()}


@pytest.mark.parametrize("name", [MPO, "dpo:0.8+sft", "simpo+sft:0.05", "tdpo1:0.5+kto:0.5", "dpo+tpo:0.1"])
def test_mixtures_keep_the_laws(name):
    assert [f"{law.name}: {law.reason}" for law in check(variants.get(name)) if not law.passed] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dpo:heavy+sft", "'heavy' is no positive weight"),
        ("dpo:-1+sft", "'-1' is no positive weight"),
        ("dpo:0+sft", "'0' is no positive weight"),
        ("dpo+dpo:2", "'dpo' is named twice"),
        ("dppo:1+sft", "Did you mean 'dpo'"),
        ("dpo+", "no variant"),
        ("dpo: 0.5+sft", "without blanks"),
    ],
)
def test_a_mistake_in_the_name_is_named(name, words):
    with pytest.raises(UserError, match=words):
        variants.get(name)


def test_a_need_takes_the_setting_of_the_part_that_has_it_and_not_of_a_namesake(tmp_path):
    registry = LossRegistry()
    for name, needs in (("flipped", ""), ("stepped", "needs=('extrapolated',), ")):
        file = tmp_path / f"{name}.py"
        file.write_text(
            f'"""Own."""\nfrom dpobench import loss\n@loss(source="none", {needs}beta_grid=(0.1, 0.2))\n'
            f'def {name}(pairs, *, beta: float = 0.1, epsilon: float = 0.2):\n    """Own."""\n    return -beta * pairs.margin\n'
        )
        registry.add_file(file)
    bound = registry.get("eps_dpo+flipped").bind()
    assert bound.variant.pick("epsilon", bound.params) == 0.01
    with pytest.raises(UserError, match="its parts disagree on epsilon"):
        registry.get("eps_dpo+stepped").bind()
    registry.get("eps_dpo+stepped").bind(**{"stepped.epsilon": 0.01})


@pytest.mark.parametrize("twins", [("dpo", "dpo:1"), ("dpo+sft", "sft:1.0+dpo"), ("dpo:2+sft", "dpo:2.0+sft:1")])
def test_one_loss_under_two_names_is_refused(twins):
    with pytest.raises(UserError, match="are one loss; leave one out"):
        validate.validate(Experiment(variants=twins))


def test_of_two_mixtures_the_grid_reaches_the_one_with_the_longer_name():
    names = ["dpo+sft:1", "dpo+sft:1.5"]
    found, _ = parse_grids([], ["dpo+sft:1.5.dpo.beta=0.2"], {one: variants.get(one) for one in names})
    assert found == {"dpo+sft:1": {}, "dpo+sft:1.5": {"dpo.beta": (0.2,)}}


def test_the_grids_of_a_mixture_are_reached_though_it_has_dots_in_its_name():
    name = "dpo:0.8+sft:0.5"
    found, _ = parse_grids(
        [f"{name}=0.05,0.1"], [f"{name}.sft.weight=1.0,2.0"], {one: variants.get(one) for one in [name, "ipo"]}
    )
    assert found[name] == {"dpo.beta": (0.05, 0.1), "sft.weight": (1.0, 2.0)}
    runs = Experiment(variants=(name,), grid={name: found[name]}).runs("none")
    assert len({run.id for run in runs}) == 4
    assert all(":" not in run.id and run.beta in (0.05, 0.1) for run in runs)


def test_another_weight_is_another_code():
    assert variants.get("dpo:0.8+sft").code_hash != variants.get("dpo:0.7+sft").code_hash
