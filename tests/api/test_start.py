"""`dpobench.run` is the command: the same experiment, from Python."""

import tomllib

import numpy as np
import pytest

import dpobench
from dpobench.api import start
from dpobench.experiment.options import Options

SMALL = {"evaluation.tasks": [], "evaluation.pool": 0, "evaluation.prompts": 16, "evaluation.heldout_pairs": 16}


def test_arguments_become_the_options_of_the_command(monkeypatch, tmp_path):
    requested = []

    def stop(experiment, folder, machine, console):
        requested.append((experiment, folder))
        raise dpobench.UserError("stopped")

    monkeypatch.setattr(start.sweep, "run", stop)
    with pytest.raises(dpobench.UserError, match="stopped"):
        dpobench.run(
            ["dpo", "cdpo"],
            beta_grid={"dpo": [0.1, 0.3], "cdpo": [0.5]},
            grid={"cdpo.flip": [0.1, 0.2]},
            seeds=range(2),
            settings={"recipe.clip": 2.0, "recipe.schedule": "cosine", "evaluation.tasks": ["facts"]},
            preset="tiny",
            label_noise=[0.3],
            out=tmp_path / "out",
            quiet=True,
        )
    options = Options(
        variants=["dpo", "cdpo"],
        beta_grid=["dpo=0.1,0.3", "cdpo=0.5"],
        grid=["cdpo.flip=0.1,0.2"],
        seeds=[0, 1],
        assignments=["recipe.clip=2.0", "recipe.schedule=cosine", "evaluation.tasks=['facts']"],
        preset="tiny",
        label_noise=[0.3],
    )
    assert requested == [(options.experiment()[0], tmp_path / "out")]


def test_beta_grids_are_written_as_on_the_command_line():
    assert start._beta_grid(True) == ["auto"]
    assert start._beta_grid(False) == []
    assert start._beta_grid([0.05, 0.1]) == ["0.05,0.1"]


def test_a_mistyped_option_gets_the_nearest():
    with pytest.raises(dpobench.UserError, match="Did you mean 'control'"):
        dpobench.run(["dpo"], controll="dpo")


@pytest.mark.slow
def test_an_experiment_is_run_and_returned(tmp_path):
    more = {"baselines": False, "preset": "tiny", "workers": 1, "quiet": True, "settings": SMALL}
    results = dpobench.run(["dpo"], beta_grid=[0.1, 0.5], out=tmp_path / "out", **more)
    assert results.runs[["variant", "beta", "status"]].to_numpy().tolist() == [
        ["dpo", 0.1, "done"],
        ["dpo", 0.5, "done"],
    ]
    assert {"win_rate", "kl"} <= set(results.scores["metric"])
    trained = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("runs/*/run.json")}
    again = dpobench.run(["dpo"], beta_grid=[0.1, 0.5], out=tmp_path / "out", **more)
    assert again.scores.equals(results.scores)
    assert trained == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("runs/*/run.json")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variants": "dpo"}, "a list of names is expected"),
        ({"variants": ["dpo"], "tasks": "piqa"}, "tasks = 'piqa': a list is expected"),
        ({"variants": ["dpo"], "model": 3.5}, r"model = 3\.5"),
    ],
)
def test_one_value_where_several_are_expected_is_refused_with_its_name(arguments, message):
    with pytest.raises(dpobench.UserError, match=message):
        dpobench.run(**arguments)


def test_paths_numbers_of_numpy_and_none_are_taken_as_what_they_are(monkeypatch, tmp_path):
    requested = []
    monkeypatch.setattr(start, "Options", lambda **given: requested.append(given) or (_ for _ in ()).throw(KeyError))
    monkeypatch.setattr(start.Options, "__dataclass_fields__", Options.__dataclass_fields__, raising=False)
    with pytest.raises(KeyError):
        dpobench.run(
            ["dpo"],
            beta_grid=np.linspace(0.1, 0.3, 2),
            seeds=np.arange(2),
            model=tmp_path,
            data=tmp_path / "a",
            judge=None,
        )
    (given,) = requested
    assert given["beta_grid"] == ["0.1,0.3"]
    assert given["seeds"] == [0, 1]
    assert (given["model"], given["data"]) == (str(tmp_path), str(tmp_path / "a"))
    assert "judge" not in given


def test_a_text_among_the_settings_arrives_as_it_is():
    text = "Don't say \"maybe\"\nor 'perhaps'"
    assert tomllib.loads(f"value = {start._toml(text)}")["value"] == text
