"""What is refused before anything is computed, in one place."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from dpobench.errors import PluginRefused, UserError
from dpobench.evaluation.registry import evaluators, judges
from dpobench.experiment.options import Options
from dpobench.experiment.plugin_files import register
from dpobench.experiment.validate import validate
from dpobench.losses.registry import variants
from dpobench.sweep import external, preview
from dpobench.sweep import run as sweep
from dpobench.sweep.plan import Machine

HERE = Machine("cpu", 1, 1, Path("unused"))


@pytest.fixture(autouse=True)
def _registries_as_they_were(monkeypatch):
    """Files that a test registers are unknown to the tests after it."""
    for registry in (variants, evaluators, judges):
        monkeypatch.setattr(registry, "extra_files", list(registry.extra_files))


def test_a_plugin_file_without_a_plugin_is_refused_and_says_what_is_missing(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def mine(pairs, *, beta=0.1):\n    return pairs.margin\n")
    with pytest.raises(
        PluginRefused, match=r"mine\.py holds no loss, evaluator or judge; decorate a function with @loss"
    ):
        register([str(file)])
    with pytest.raises(PluginRefused, match="holds no loss"):
        Options(variants=["dpo"], plugins=[file]).experiment()


@pytest.mark.parametrize(
    ("module", "begin"),
    [
        (sweep, lambda experiment, out, console: sweep.run(experiment, out, HERE, console)),
        (preview, lambda experiment, out, console: preview.dry_run(experiment, console)),
        (external, lambda experiment, out, console: external.evaluate(["a"], experiment, out, HERE, console)),
    ],
    ids=["run", "dry run", "evaluate"],
)
def test_every_way_in_validates_once_and_computes_nothing_before(module, begin, tmp_path, monkeypatch):
    validated = []

    def refuse(experiment, **how):
        validated.append(experiment)
        raise UserError("refused")

    monkeypatch.setattr(module, "validate", refuse)
    experiment, _ = Options(variants=["dpo"], preset="tiny").experiment()
    with pytest.raises(UserError, match="refused"):
        begin(experiment, tmp_path / "out", Console(file=io.StringIO()))
    assert validated == [experiment]
    assert not (tmp_path / "out").exists()


def test_options_go_before_set_before_the_file_before_the_preset(tmp_path):
    file = tmp_path / "experiment.toml"
    file.write_text("variants = ['ipo']\nseeds = [7]\n[recipe]\nepochs = 3.0\nclip = 0.5\n[grid.ipo]\nbeta = [0.5]\n")
    options = Options(
        preset="tiny", config=file, assignments=["recipe.clip=2.0", "seeds=[8]"], seeds=[9], grid=["ipo.beta=0.1,0.3"]
    )
    experiment, warnings = options.experiment()
    assert warnings == []
    assert (experiment.variants, experiment.seeds, experiment.grid) == (("ipo",), (9,), {"ipo": {"beta": (0.1, 0.3)}})
    # 2e-3 is the preset's learning rate.
    assert (experiment.recipe.epochs, experiment.recipe.clip, experiment.recipe.learning_rate) == (3.0, 2.0, 2e-3)


EVALUATOR = """
from dpobench import Metric, evaluator, score_rows

@evaluator(metrics={{"{metric}": Metric("letters", "none", label="letters")}})
def {name}(checkpoint, held_out):
    \"\"\"Letters of an answer.\"\"\"
    frame = held_out.samples
    return score_rows(frame["prompt"].tolist(), "{metric}", {values}, draws=frame["draw"].tolist())
"""


def test_evaluators_of_a_users_file_are_held_to_their_laws(tmp_path):
    sound, faulty = tmp_path / "sound.py", tmp_path / "faulty.py"
    sound.write_text(
        EVALUATOR.format(name="letters_of", metric="letters_of", values="frame['text'].str.len().tolist()")
    )
    faulty.write_text(EVALUATOR.format(name="places_of", metric="places_of", values="list(range(len(frame)))"))
    validate(Options(variants=["dpo"], preset="tiny", plugins=[sound]).experiment()[0], may_pay=False)
    with pytest.raises(PluginRefused, match=r"evaluator 'places_of'.*breaks the law 'order'"):
        validate(Options(variants=["dpo"], preset="tiny", plugins=[faulty]).experiment()[0], may_pay=False)


def test_two_evaluators_of_one_metric_are_refused(tmp_path):
    file = tmp_path / "words.py"
    file.write_text(EVALUATOR.format(name="word_count", metric="length", values="frame['text'].str.len().tolist()"))
    with pytest.raises(UserError, match=r"metric 'length' is declared by the evaluators .*samples.*; rename one"):
        validate(Options(variants=["dpo"], preset="tiny", plugins=[file]).experiment()[0], may_pay=False)
