"""Checkpoints trained elsewhere: how they are named, what is refused, and that they enter the same tables."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dpobench.artifacts import scores
from dpobench.artifacts.files import folder_hash, read_json
from dpobench.artifacts.records import PlanRecord, RunRecord
from dpobench.data.settings import Data
from dpobench.errors import UnknownName, UserError
from dpobench.evaluation import score
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.config import Experiment
from dpobench.models.adapters import CONFIG
from dpobench.sweep import external
from dpobench.sweep.checkpoint_specs import read_specs
from dpobench.sweep.plan import Machine
from dpobench.training.run import HARNESS, Recipe
from tests.training.tiny import llama, words

WHERE = Machine("cpu", 1, 1, Path("unused"))


def save(model, folder):
    model.save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


def moved(seed, size=0.05):
    """The base, moved at random: what a training would leave."""
    model = llama()
    torch.manual_seed(100 + seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += size * torch.randn_like(weight)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of a reference, of three trained models, and a file of held-out pairs."""
    root = tmp_path_factory.mktemp("models")
    save(llama(), root / "base")
    for seed in range(3):
        save(moved(seed), root / "ckpt" / f"seed{seed}")
    rows = [
        {
            "prompt": f"w{3 + i} w{4 + i % 40}",
            "chosen": f"w{5 + i % 9} w7 w{3 + i % 30}",
            "rejected": f"w9 w{20 + i % 20}",
        }
        for i in range(40)
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "judge.py").write_text("def score(prompt, completion):\n    return float(len(completion))\n")
    return root


def asked(made, evaluators=("samples",), judge=False, **more):
    told = {"judge": "gold", "judge_settings": {"function": f"{made / 'judge.py'}:score"}} if judge else {}
    evaluation = Evaluation(evaluators=evaluators, max_new_tokens=24, prompts=40, pool=0, **told)
    data = Data(source=str(made / "pairs.jsonl"), template="plain")
    recipe = Recipe(max_tokens=64, max_prompt_tokens=32)
    return Experiment(**{"model": str(made / "base"), "data": data, "evaluation": evaluation, "recipe": recipe} | more)


@pytest.fixture
def evaluated(made, tmp_path, monkeypatch):
    """Scores checkpoints; the report is left out unless asked for. Returns what was said and the plan."""

    def run(*checkpoints, report=False, out="out", **more):
        if not report:
            monkeypatch.setattr(external, "finish", lambda out, ended, console: 0)
        console = Console(file=io.StringIO(), width=4000)
        status = external.evaluate(
            checkpoints, asked(made, **more), tmp_path / out, replace(WHERE, cache=tmp_path / "cache"), console
        )
        assert status == 0
        return console.file.getvalue(), read_json(tmp_path / out / "plan.json")

    run.out = tmp_path / "out"
    return run


def test_folders_names_and_patterns_are_read_as_written(tmp_path):
    for name in ("a", "seed0", "seed1", "odd=name"):
        (tmp_path / name).mkdir()
    seeds = [str(tmp_path / "seed0"), str(tmp_path / "seed1")]
    found = read_specs(
        [
            str(tmp_path / "a"),
            str(tmp_path / "odd=name"),
            f"dpo={tmp_path}/seed*",
            f"ipo={seeds[0]}, org/model",
            f"ipo={seeds[1]}",
        ]
    )
    told = [(entry.method, entry.place, entry.number) for entry in found]
    assert told[:2] == [("", str(tmp_path / "a"), 0), ("", str(tmp_path / "odd=name"), 0)]
    assert told[2:4] == [("dpo", seeds[0], 0), ("dpo", seeds[1], 1)]
    assert told[4:] == [("ipo", seeds[0], 0), ("ipo", "org/model", 1), ("ipo", seeds[1], 2)]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dpo=", "checkpoint without a folder"),
        ("=a", "'' can name no row"),
        ("reference=a", "'reference' can name no row"),
        ("dpo=nowhere/x*", "nothing matches this pattern"),
    ],
)
def test_an_argument_that_names_nothing_is_refused(argument, message):
    with pytest.raises(UserError, match=message):
        read_specs([argument])


def test_three_seeds_of_one_method_make_a_claim_about_the_method(evaluated, made):
    _, plan = evaluated(
        f"mine={made}/ckpt/seed*",
        f"start={save(moved(7), made / 'other')}",
        report=True,
        evaluators=(),
        judge=True,
        control="start",
    )
    assert [(run["variant"], run["seed"]) for run in plan["runs"]] == [
        ("mine", 0),
        ("mine", 1),
        ("mine", 2),
        ("start", 0),
    ]
    with (evaluated.out / "report" / "tables" / "leaderboard.csv").open(newline="") as stream:
        rows = {row["variant"]: row for row in csv.DictReader(stream)}
    assert [rows["mine"][key] for key in ("seeds", "seeds_planned")] == ["3", "3"]
    assert rows["start"]["verdict"] == "control"
    # Only the control has a single seed: the difference speaks of checkpoints, the mean of the method.
    assert "this checkpoint only" in rows["mine"]["verdict"]
    with (evaluated.out / "report" / "tables" / "grid.csv").open(newline="") as stream:
        assert {row["variant"]: row["level"] for row in csv.DictReader(stream)} == {
            "mine": "method",
            "start": "checkpoint",
        }
    assert "None" not in (evaluated.out / "report" / "report.md").read_text()


def test_a_second_call_scores_nothing_anew(evaluated, made, monkeypatch):
    first, _ = evaluated(f"mine={made}/ckpt/seed*", evaluators=("samples", "preference"))
    assert first.count("scoring mine") == 3
    before = folder_hash(evaluated.out / "runs")
    monkeypatch.setattr(score, "sample", lambda *_: pytest.fail("sampled again"))
    again, _ = evaluated(f"mine={made}/ckpt/seed*", evaluators=("samples", "preference"))
    assert again.count("scored before") == 3
    assert folder_hash(evaluated.out / "runs") == before


def test_what_was_scored_before_an_interruption_is_kept(evaluated, made, monkeypatch):
    true, drawn = score.sample, []

    def killed(*arguments):
        drawn.append(arguments)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return true(*arguments)

    monkeypatch.setattr(score, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluated(f"mine={made}/ckpt/seed*")
    # The reference and one checkpoint were whole; two are left.
    said, _ = evaluated(f"mine={made}/ckpt/seed*")
    assert said.count("scored before") == 1
    assert len(drawn) == 3 + 2


def test_several_aims_are_measured_on_judges_and_on_pairs_of_their_own(evaluated, made):
    aims = {"long": f"gold:{made / 'judge.py'}:score", "paired": str(made / "pairs.jsonl")}
    evaluation = asked(made).evaluation.model_copy(update={"evaluators": ("objectives",), "objectives": aims})
    said, plan = evaluated(str(made / "ckpt" / "seed0"), evaluation=evaluation)
    assert "objective paired: 40 held-out pairs" in said
    frame, _ = scores.read(evaluated.out / "runs" / plan["runs"][0]["id"], "objectives")
    counted = frame.groupby(["metric", "group"]).size().to_dict()
    assert counted["objective_win_rate", "long"] == counted["objective_reward", "long"] == 40
    assert counted["objective_accuracy", "paired"] == 40
    assert 0 < frame[frame["metric"] == "objective_accuracy"]["value"].mean() < 1
    base, _ = scores.read(evaluated.out / "reference" / plan["reference"], "objectives")
    assert set(base[base["metric"] != "objective_reward"]["value"]) == {0.5, 0.0}


def run_of_ours(made, folder, source, **fields):
    """A run's folder as `dpobench run` leaves it."""
    shutil.copytree(made / "ckpt" / source, folder / "checkpoint")
    loss = {"variant": "dpo", "params": {"beta": 0.3}, "strength": "beta", "beta": 0.3, "unit": "nat"}
    outcome = {"status": "done", "flags": ["unstable"], "provenance": {"model_hash": "elsewhere", "data_hash": "d"}}
    settings = {"id": folder.name, "seed": 5, "learning_rate": 1e-3, "recipe": {"batch": 4}, "harness": HARNESS}
    RunRecord.model_validate(loss | outcome | settings | fields).write(folder)
    (folder / "log.jsonl").write_text('{"step": 0, "loss": 0.69}\n')
    return folder


def test_a_run_of_ours_brings_its_variant_strength_and_seed(evaluated, made, tmp_path):
    own = run_of_ours(made, tmp_path / "exp" / "runs" / "dpo-1", "seed0")
    noisy = run_of_ours(made, tmp_path / "exp" / "runs" / "dpo-2", "seed1", condition={"label_noise": 0.1})
    plain = run_of_ours(made, tmp_path / "exp" / "runs" / "sft-1", "seed2", variant="sft", beta=1.0)
    losses = {"states_probability": ("dpo",), "baselines": ("sft",), "given": {"dpo": ("win_probability",)}}
    PlanRecord(runs=(), **losses).write(tmp_path / "exp")
    said, plan = evaluated(str(plain), str(own), str(noisy / "checkpoint"), str(made / "base"))
    keys = ("variant", "seed", "beta", "unit", "learning_rate", "params")
    assert [tuple(run[key] for key in keys) for run in plan["runs"]] == [
        ("sft", 5, 1.0, "nat", 1e-3, {"beta": 0.3}),
        ("dpo", 5, 0.3, "nat", 1e-3, {"beta": 0.3}),
        ("dpo", 5, 0.3, "nat", 1e-3, {"beta": 0.3, "label_noise": 0.1}),
        ("base", 0, None, "", None, {}),
    ]
    assert plan["states_probability"] == ["dpo"]
    assert plan["baselines"] == ["sft"]
    assert plan["given"]["dpo"] == ["win_probability"]
    assert read_json(evaluated.out / "experiment.json")["control"] == "dpo", "the first that is no baseline"
    assert said.count("trained from another start") == 3
    notes = [read_json(evaluated.out / "runs" / run["id"] / "run.json") for run in plan["runs"]]
    assert [note["flags"] for note in notes] == [["unstable", "trained from another start"]] * 3 + [
        ["trained elsewhere"]
    ]
    assert (evaluated.out / "runs" / plan["runs"][1]["id"] / "log.jsonl").read_text() == (own / "log.jsonl").read_text()


def test_a_checkpoint_within_a_training_of_ours_is_called_by_its_step(evaluated, made, tmp_path):
    folder = run_of_ours(made, tmp_path / "exp" / "runs" / "dpo-1", "seed0")
    place = folder / "within" / "16" / "checkpoint"
    shutil.copytree(folder / "checkpoint", place)
    _, plan = evaluated(str(place))
    (entry,) = plan["runs"]
    assert (entry["variant"], entry["params"]) == ("dpo", {"beta": 0.3, "step": 16})


def test_the_draws_of_a_checkpoint_are_those_of_its_seed(evaluated, made, tmp_path):
    _, plan = evaluated(f"a={run_of_ours(made, tmp_path / 'runs' / 'x', 'seed0')}")
    stamp = read_json(evaluated.out / "runs" / plan["runs"][0]["id"] / "samples.json")
    assert stamp["seed"] == 5


def test_a_checkpoint_of_the_hub_is_called_by_its_name(evaluated, made, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(made / "ckpt" / "seed1"))
    _, plan = evaluated("org/my-dpo")
    assert [run["variant"] for run in plan["runs"]] == ["my-dpo"]


def refused(evaluated, message, *checkpoints, kind=UserError, **more):
    with pytest.raises(kind, match=message) as found:
        evaluated(*checkpoints, **more)
    assert "\n" not in str(found.value)
    assert not list(evaluated.out.glob("runs/*")), "nothing was scored"


def test_a_run_without_a_checkpoint_says_why(evaluated, tmp_path):
    reason = "loss is not finite at step 3"
    RunRecord(id="dpo-1", variant="dpo", seed=0, status="diverged", reason=reason).write(tmp_path / "dpo-1")
    refused(evaluated, r"left no checkpoint \(diverged: loss is not finite at step 3\)", str(tmp_path / "dpo-1"))


def test_one_name_for_two_checkpoints_is_refused(evaluated, made, tmp_path):
    twin = shutil.copytree(made / "ckpt" / "seed1", tmp_path / "seed0")
    refused(evaluated, "both seed0, seed 0.*NAME=FOLDER", str(made / "ckpt" / "seed0"), str(twin))


def test_runs_of_other_settings_are_no_seeds_of_one_method(evaluated, made, tmp_path):
    runs = tmp_path / "exp" / "runs"
    own = run_of_ours(made, runs / "dpo-1", "seed0")
    other = run_of_ours(made, runs / "ipo-1", "seed1", variant="ipo", params={"beta": 3.0}, beta=3.0)
    refused(evaluated, r"dpo, beta=0\.3, .*ipo, beta=3\.0, .*no seeds of one method", f"a={own},{other}")
    refused(evaluated, "no seeds of one method", f"a={own}", f"a={other}")


def test_one_model_under_two_names_is_refused(evaluated, made, tmp_path):
    twin = shutil.copytree(made / "ckpt" / "seed0", tmp_path / "copy")
    refused(evaluated, "hold the same weights", f"a={made / 'ckpt' / 'seed0'},{twin}")


def test_a_file_in_place_of_its_folder_is_told_which_folder(evaluated, made):
    file = made / "ckpt" / "seed0" / "model.safetensors"
    refused(evaluated, rf"is a file; name the folder it lies in, {file.parent}", f"a={file}")


def test_the_home_of_nobody_is_no_folder(evaluated):
    refused(evaluated, "no such folder", "~nobody-of-this-name/ckpt")
    refused(evaluated, "nothing matches this pattern", "a=~nobody-of-this-name/x*")


def test_a_control_that_was_not_entered_is_refused(evaluated, made):
    refused(
        evaluated, "seed00.*[Dd]id you mean 'seed0'", str(made / "ckpt" / "seed0"), kind=UnknownName, control="seed00"
    )


def test_other_words_are_refused(evaluated, made, tmp_path):
    other = shutil.copytree(made / "ckpt" / "seed0", tmp_path / "other")
    words(40).save_pretrained(other)
    refused(evaluated, r"tokenizer differs .*40 and 48 words; 'w\d+' is number None and \d+\)", str(other))


def test_another_number_of_embeddings_is_refused(evaluated, made, tmp_path):
    save(llama(vocab_size=64), tmp_path / "padded")
    refused(evaluated, "its embedding has 64 rows, the reference's 48", str(tmp_path / "padded"))


def test_weights_that_are_not_finite_are_refused_before_anything_is_scored(evaluated, made, tmp_path):
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    save(model, tmp_path / "burst")
    refused(
        evaluated,
        r"model\.norm\.weight holds 1 values that are not finite",
        str(made / "ckpt" / "seed0"),
        str(tmp_path / "burst"),
    )


def test_a_damaged_file_of_weights_is_named(evaluated, made, tmp_path):
    torn = shutil.copytree(made / "ckpt" / "seed0", tmp_path / "torn")
    file = torn / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(evaluated, r"torn/model\.safetensors is damaged", str(torn))


def test_an_experiment_is_not_overwritten_by_checkpoints(evaluated, made):
    trained = PlanRecord(runs=(), training="abc")
    trained.write(evaluated.out)
    refused(evaluated, "holds an experiment that was trained there", str(made / "ckpt" / "seed0"))
    assert PlanRecord.read(evaluated.out) == trained


def test_an_adapter_without_its_base_says_how_to_name_it(evaluated, made, tmp_path):
    (tmp_path / "lora").mkdir()
    told = {"peft_type": "LORA", "base_model_name_or_path": "./gone"}
    (tmp_path / "lora" / CONFIG).write_text(json.dumps(told))
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(b"")
    refused(evaluated, "its base is not to be had.*base_model_name_or_path", str(tmp_path / "lora"))
