"""The whole-sweep comparison: what each side would run, what is counted, and that it refuses to compare different work."""

import ast
import importlib.util
import itertools
import json
import math
import sys
from dataclasses import replace

import pandas as pd
import pytest

from dpobench.artifacts.files import write_bytes, write_json
from dpobench.artifacts.records import RunRecord
from dpobench.bench import sweep
from dpobench.errors import DpobenchError, UserError
from dpobench.losses.registry import variants
from dpobench.sweep.events import PartBegun, StepTaken


@pytest.fixture
def asked():
    return sweep.task()


def options(command):
    """The value after each option; for one given several times, all of them."""
    found = {}
    for name, value in itertools.pairwise(command):
        if name.startswith("--"):
            found.setdefault(name, []).append(value)
    return found


def test_the_grid_is_four_known_losses_at_three_strengths(asked):
    grids = asked.grids()
    assert [len(values) for values in grids.values()] == [3, 3, 3, 3]
    assert set(grids) <= set(variants.names())
    assert len({(cell.variant, cell.beta) for cell in asked.cells}) == 12


def test_later_strengths_are_new_ones_of_the_first_variant(asked):
    first = asked.cells[0].variant
    later = asked.grids(len(asked.further))
    assert len(set(later[first])) == 3 + len(asked.further)
    assert {name: values for name, values in later.items() if name != first} == {
        name: values for name, values in asked.grids().items() if name != first
    }


def test_a_limited_grid_is_the_first_cells(asked):
    assert sweep.task(4).cells == asked.cells[:4]


def test_our_side_is_one_command_with_one_worker_of_one_thread(asked, tmp_path):
    command = sweep.our_command(asked, tmp_path, further=1)
    assert command[:4] == [sys.executable, "-m", "dpobench", "run"]
    told = options(command)
    assert told["--variants"] == ["dpo,ipo,cdpo,hinge"]
    assert told["--beta-grid"] == ["dpo=0.05,0.1,0.3,0.2", "ipo=0.5,1,3", "cdpo=0.05,0.1,0.3", "hinge=0.05,0.1,0.5"]
    assert told["--workers"] == told["--threads"] == ["1"]
    assert told["--out"] == [str(tmp_path)]


def test_trl_takes_the_batch_and_the_clipping_of_our_recipe(asked):
    told = sweep.configuration(asked.cells[0], asked.recipe, steps=8, micro_batch=4)
    assert told["per_device_train_batch_size"] * told["gradient_accumulation_steps"] == asked.recipe.batch
    assert (told["beta"], told["max_steps"], told["max_grad_norm"]) == (0.05, 8, asked.recipe.clip)
    assert told["precompute_ref_log_probs"] is True
    assert told["gradient_checkpointing"] is False


def test_trl_is_told_a_loss_it_lacks_as_a_sum_of_two_it_has(asked):
    """With A and B the logistic losses at a margin and its opposite: 0.9 A + 0.1 B, the flipped share being 0.1."""
    told = next(cell.trl for cell in asked.cells if len(cell.trl["loss_type"]) == 2)
    a, b, share = math.log1p(math.exp(-0.7)), math.log1p(math.exp(0.7)), told["label_smoothing"]
    parts = (a, ((1 - share) * a - share * b) / (1 - 2 * share))
    total = sum(weight * part for weight, part in zip(told["loss_weights"], parts, strict=True))
    assert total == pytest.approx(0.9 * a + 0.1 * b, rel=1e-12)


def test_lm_eval_scores_the_checkpoint_on_the_same_tasks(asked, tmp_path):
    command = sweep.lm_eval_command(tmp_path / "checkpoint", tmp_path / "world", asked, tmp_path / "out")
    assert command[:5] == [sys.executable, "-P", "-m", "lm_eval", "run"]
    told = options(command)
    assert told["--tasks"] == ["facts,grammar,stars"]
    assert told["--include_path"] == [str(tmp_path / "world" / "tasks")]
    assert told["--model_args"] == [f"pretrained={tmp_path / 'checkpoint'},dtype=float32"]


def test_a_script_of_the_other_side_reads_its_arguments_from_a_file(tmp_path):
    command = sweep.peer_command("sample", {"batch": 3}, tmp_path / "told.json")
    assert command == [sys.executable, "-P", str(sweep.PEER), "sample", str(tmp_path / "told.json")]
    assert json.loads((tmp_path / "told.json").read_text()) == {"batch": 3}


def test_the_other_side_pays_for_nothing_of_ours():
    nodes = list(ast.walk(ast.parse(sweep.PEER.read_text())))
    taken = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    taken += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert "trl" in taken
    assert not [name for name in taken if name.startswith("dpobench")]


@pytest.mark.parametrize("missing", ["trl", "lm_eval"])
def test_without_the_other_side_it_says_how_to_get_it(missing, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    there = {"trl", "lm_eval"} - {missing}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in there else None if name == missing else found(name)
    )
    with pytest.raises(UserError, match=f"{missing}, which is not installed; pip install"):
        sweep.measure(tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_cpu_seconds_count_a_child_and_its_children(tmp_path):
    """A child that starts another: both turn until 0.2 seconds of their own are spent."""
    busy = "import time\nwhile time.process_time() < 0.2: pass"
    both = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {busy!r}])\n{busy}"
    assert sweep.cpu_seconds([sys.executable, "-c", both], tmp_path / "log") >= 0.4


def test_a_process_that_fails_tells_its_last_line(tmp_path):
    with pytest.raises(DpobenchError, match="ended with status 3; it said: no disk"):
        sweep.cpu_seconds([sys.executable, "-c", "print('first\\nno disk'); raise SystemExit(3)"], tmp_path / "log")


def test_a_share_is_all_but_the_evaluation_over_the_steps():
    """Begun at 10; steps end at 11, 12, 13.5 with 100, 100, 150 tokens; scoring begins at 14.

    Two steps of 250 tokens took 2.5, so all 350 take 3.5; the run's own work is 4.
    """
    ends = ((11.0, 100), (12.0, 100), (13.5, 150))
    marks = [(at, StepTaken("run", 0, 3, 0.5, 0.5, 0.0, tokens, 1.0)) for at, tokens in ends]
    marks += [(at, PartBegun("run", part)) for at, part in ((14.0, "sampling"), (20.0, "kl"))]
    assert sweep.share(10.0, marks) == pytest.approx(4 / 3.5)


@pytest.fixture
def both(asked, tmp_path):
    """Folders of both sides after one cell of two steps, three answers each."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run, place = ours / "runs" / "one", theirs / "dpo-0.05"
    place.mkdir(parents=True)
    loss = {"variant": "dpo", "params": {"beta": 0.05}, "strength": "beta", "beta": 0.05}
    RunRecord(id="one", seed=0, status="done", tokens=70, **loss).write(run)
    write_bytes(run / "log.jsonl", b'{"loss": 0.5}\n{"loss": 0.4}\n')
    pd.DataFrame({"text": ["a", "b", "c"]}).to_parquet(run / "samples.parquet")
    write_json(place / "log.json", [{"loss": 0.5, "num_tokens": 30}, {"loss": 0.40001, "num_tokens": 70}, {}])
    write_bytes(place / "answers.jsonl", b"{}\n{}\n{}\n")
    return replace(asked, cells=asked.cells[:1]), ours, theirs


def test_agreement_is_relative_to_the_loss_at_the_start(both):
    assert sweep.disagreement(*both) == pytest.approx(1e-5 / 0.5, rel=1e-6)


def test_nothing_is_compared_where_a_loss_differs(both):
    write_json(both[2] / "dpo-0.05" / "log.json", [{"loss": 0.5}, {"loss": 0.41, "num_tokens": 70}])
    with pytest.raises(DpobenchError, match=r"dpo-0.05: a step's loss differs from TRL's by 0.02 of"):
        sweep.disagreement(*both)


def test_nothing_is_compared_where_the_counts_differ(both):
    write_bytes(both[2] / "dpo-0.05" / "answers.jsonl", b"{}\n{}\n")
    with pytest.raises(DpobenchError, match=r"are \(70, 2, 3\), on TRL's side \(70, 2, 2\)"):
        sweep.disagreement(*both)
