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
from dpobench.bench import sweep_spec, whole_sweep
from dpobench.bench.whole_sweep import Mark
from dpobench.errors import DpobenchError, UserError
from dpobench.losses.registry import variants
from dpobench.sweep.events import PartBegun, StepTaken


@pytest.fixture
def spec():
    return sweep_spec.read_spec()


def options(command):
    """The value after each option; for one given several times, all of them."""
    values = {}
    for name, value in itertools.pairwise(command):
        if name.startswith("--"):
            values.setdefault(name, []).append(value)
    return values


def test_the_grid_is_four_known_losses_at_three_betas(spec):
    grids = spec.grids()
    assert [len(values) for values in grids.values()] == [3, 3, 3, 3]
    assert set(grids) <= set(variants.names())
    assert len({(point.variant, point.beta) for point in spec.points}) == 12


def test_later_betas_are_new_ones_of_the_first_variant(spec):
    first = spec.points[0].variant
    later = spec.grids(len(spec.further))
    assert len(set(later[first])) == 3 + len(spec.further)
    assert {name: values for name, values in later.items() if name != first} == {
        name: values for name, values in spec.grids().items() if name != first
    }


def test_a_limited_grid_is_the_first_points(spec):
    assert sweep_spec.read_spec(4).points == spec.points[:4]


def test_our_side_is_one_command_with_one_worker_of_one_thread(spec, tmp_path):
    command = sweep_spec.our_command(spec, tmp_path, further=1)
    assert command[:4] == [sys.executable, "-m", "dpobench", "run"]
    given = options(command)
    assert given["--variants"] == ["dpo,ipo,cdpo,hinge"]
    assert given["--beta-grid"] == ["dpo=0.05,0.1,0.3,0.2", "ipo=0.5,1,3", "cdpo=0.05,0.1,0.3", "hinge=0.05,0.1,0.5"]
    assert given["--workers"] == given["--threads"] == ["1"]
    assert given["--out"] == [str(tmp_path)]


def test_trl_takes_the_batch_and_the_clipping_of_our_recipe(spec):
    fields = sweep_spec.configuration(spec.points[0], spec.recipe, steps=8, micro_batch=4)
    assert fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"] == spec.recipe.batch
    assert (fields["beta"], fields["max_steps"], fields["max_grad_norm"]) == (0.05, 8, spec.recipe.clip)
    assert fields["precompute_ref_log_probs"] is True
    assert fields["gradient_checkpointing"] is False


def test_a_loss_that_trl_lacks_is_a_sum_of_two_that_it_has(spec):
    """With A and B the logistic losses at a margin and its opposite: 0.9 A + 0.1 B, the flipped share being 0.1."""
    fields = next(point.trl for point in spec.points if len(point.trl["loss_type"]) == 2)
    a, b, share = math.log1p(math.exp(-0.7)), math.log1p(math.exp(0.7)), fields["label_smoothing"]
    parts = (a, ((1 - share) * a - share * b) / (1 - 2 * share))
    total = sum(weight * part for weight, part in zip(fields["loss_weights"], parts, strict=True))
    assert total == pytest.approx(0.9 * a + 0.1 * b, rel=1e-12)


def test_lm_eval_scores_the_checkpoint_on_the_same_tasks(spec, tmp_path):
    command = sweep_spec.lm_eval_command(tmp_path / "checkpoint", tmp_path / "world", spec, tmp_path / "out")
    assert command[:5] == [sys.executable, "-P", "-m", "lm_eval", "run"]
    given = options(command)
    assert given["--tasks"] == ["facts,grammar,stars"]
    assert given["--include_path"] == [str(tmp_path / "world" / "tasks")]
    assert given["--model_args"] == [f"pretrained={tmp_path / 'checkpoint'},dtype=float32"]


def test_a_script_of_the_other_side_reads_its_arguments_from_a_file(tmp_path):
    command = sweep_spec.script_command("sample", {"batch": 3}, tmp_path / "arguments.json")
    assert command == [sys.executable, "-P", str(sweep_spec.TRL_SCRIPTS), "sample", str(tmp_path / "arguments.json")]
    assert json.loads((tmp_path / "arguments.json").read_text()) == {"batch": 3}


def test_the_other_side_pays_for_nothing_of_ours():
    nodes = list(ast.walk(ast.parse(sweep_spec.TRL_SCRIPTS.read_text())))
    taken = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    taken += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert "trl" in taken
    assert not [name for name in taken if name.startswith("dpobench")]


@pytest.mark.parametrize("missing", ["trl", "lm_eval"])
def test_without_the_other_side_it_says_how_to_get_it(missing, monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    present = {"trl", "lm_eval"} - {missing}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: name if name in present else None if name == missing else find_spec(name),
    )
    with pytest.raises(UserError, match=f"{missing}, which is not installed; pip install"):
        next(whole_sweep.run(tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()


def test_cpu_seconds_count_a_child_and_its_children(tmp_path):
    """A child that starts another: both turn until 0.2 seconds of their own are spent."""
    busy = "import time\nwhile time.process_time() < 0.2: pass"
    both = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {busy!r}])\n{busy}"
    assert sweep_spec.cpu_seconds([sys.executable, "-c", both], tmp_path / "log") >= 0.4


def test_the_error_of_a_failed_process_has_its_last_line(tmp_path):
    with pytest.raises(DpobenchError, match="ended with status 3; its last line of output: no disk"):
        sweep_spec.cpu_seconds(
            [sys.executable, "-c", "print('first\\nno disk'); raise SystemExit(3)"], tmp_path / "log"
        )


def test_the_overhead_is_all_but_the_evaluation_over_the_steps():
    """Begun at 10; steps end at 11, 12, 13.5 with 100, 100, 150 tokens; scoring begins at 14.

    Two steps of 250 tokens took 2.5, so all 350 take 3.5; the run's own work is 4.
    """
    ends = ((11.0, 100), (12.0, 100), (13.5, 150))
    marks = [Mark(seconds, StepTaken("run", 0, 3, 0.5, 0.5, 0.0, tokens, 1.0)) for seconds, tokens in ends]
    marks += [Mark(14.0, PartBegun("run", "sampling")), Mark(20.0, PartBegun("run", "kl"))]
    assert whole_sweep.overhead(10.0, marks) == pytest.approx(4 / 3.5)


@pytest.fixture
def both(spec, tmp_path):
    """Folders of both sides after one grid point of two steps, three answers each."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run, place = ours / "runs" / "one", theirs / "dpo-0.05"
    place.mkdir(parents=True)
    record = {"variant": "dpo", "params": {"beta": 0.05}, "strength": "beta", "tokens": 70}
    RunRecord(id="one", seed=0, status="done", beta=0.05, **record).write(run)
    write_bytes(run / "log.jsonl", b'{"loss": 0.5}\n{"loss": 0.4}\n')
    pd.DataFrame({"text": ["a", "b", "c"]}).to_parquet(run / "samples.parquet")
    write_json(place / "log.json", [{"loss": 0.5, "num_tokens": 30}, {"loss": 0.40001, "num_tokens": 70}, {}])
    write_bytes(place / "answers.jsonl", b"{}\n{}\n{}\n")
    return replace(spec, points=spec.points[:1]), ours, theirs


def test_agreement_is_relative_to_the_loss_at_the_start(both):
    assert whole_sweep.loss_difference(*both) == pytest.approx(1e-5 / 0.5, rel=1e-6)


def test_nothing_is_compared_where_a_loss_differs(both):
    write_json(both[2] / "dpo-0.05" / "log.json", [{"loss": 0.5}, {"loss": 0.41, "num_tokens": 70}])
    with pytest.raises(DpobenchError, match=r"dpo-0.05: a step's loss differs from TRL's by 0.02 of"):
        whole_sweep.loss_difference(*both)


def test_nothing_is_compared_where_the_counts_differ(both):
    write_bytes(both[2] / "dpo-0.05" / "answers.jsonl", b"{}\n{}\n")
    with pytest.raises(DpobenchError, match=r"are \(70, 2, 3\), on TRL's side \(70, 2, 2\)"):
        whole_sweep.loss_difference(*both)
