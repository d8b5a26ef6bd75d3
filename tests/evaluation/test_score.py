"""What one process remembers between the checkpoints it scores."""

import random
from pathlib import Path

import pandas as pd
import pytest

from dpobench import Prompt, UserError
from dpobench.artifacts.files import write_bytes
from dpobench.data.prompts import read_prompts, write_prompts
from dpobench.evaluation.plan import ON_POLICY_SAMPLES, POOL, SAMPLES, ScoringPlan, scoring_plan
from dpobench.evaluation.registry import evaluators, judges
from dpobench.evaluation.score import score, shared_cache
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.studies import Studies
from dpobench.models.checkpoint import Checkpoint
from dpobench.sweep import rounds


@pytest.fixture
def once(tmp_path):
    """What remembers for a reference, a device and a judge; the folder of held-out inputs may be another of equal content."""

    def make(reference="r", device="cpu", judge="j", folder="first"):
        if not (tmp_path / folder / SAMPLES).is_file():
            write_bytes(tmp_path / folder / SAMPLES, b"answers")
        checkpoint = Checkpoint(Path("policy"), Path("reference"), device, reference_hash=reference)
        return shared_cache(checkpoint, tmp_path / folder, ScoringPlan((), (), None, "h", {"judge": judge}))

    return make


def test_what_depends_on_the_inputs_alone_is_computed_once(once):
    assert once()("value", lambda: 1) == 1
    assert once(folder="second")("value", lambda: 2) == 1, "equal content elsewhere"
    assert once()("other", lambda: 3) == 3


@pytest.mark.parametrize("change", [{"reference": "s"}, {"device": "cuda"}, {"judge": "k"}])
def test_another_reference_device_or_judge_is_computed_anew(once, change):
    assert once()("value", lambda: 1) == 1
    assert once(**change)("value", lambda: 2) == 2


def test_other_answers_in_the_same_folder_are_computed_anew(once, tmp_path):
    assert once()("value", lambda: 1) == 1
    write_bytes(tmp_path / "first" / SAMPLES, b"others")
    assert once()("value", lambda: 2) == 2


def test_random_numbers_start_alike_whichever_checkpoint_comes_first(once):
    values = []
    for seed, reference in ((1, "a"), (2, "b")):
        random.seed(seed)
        values.append(once(reference=reference)("value", random.random))
        assert random.random() == random.Random(seed).random(), "the checkpoint's own numbers go on as before"
    assert values[0] == values[1]


@pytest.fixture
def experiment(tmp_path):
    """A reference and a policy on disk, held-out prompts, and a plugin file with an evaluator and two judges."""
    from tests.evals.small_judges import byte_tokenizer, save_judge

    save_judge(tmp_path / "reference")
    save_judge(tmp_path / "policy", seed=1)
    tokenizer = byte_tokenizer()
    prompts = [
        Prompt(f"p{n}", ({"role": "user", "content": f"Ask {n}\u2028?"},), tuple(tokenizer(f"Ask {n}?")["input_ids"]))
        for n in range(3)
    ]
    write_prompts(tmp_path / "held", prompts)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    for registry in (evaluators, judges):
        registry.add_file(plugin)
    yield tmp_path, prompts
    for registry in (evaluators, judges):
        registry.extra_files.clear()
        for name in ("about_the_inputs", "about_the_pool", "x_breaks", "coin", "place", "paid"):
            registry._loaded.pop(name, None)


PLUGIN = """
import pandas as pd
from dpobench import Metric, evaluator, judge
from dpobench.artifacts.scores import score_rows as rows

@evaluator(metrics={"answers": Metric("answers", "none")}, reference_only=True)
def about_the_inputs(checkpoint, held_out):
    held_out.write_table("extra", held_out.pool[["prompt", "draw", "text"]])
    return rows(["all"], "answers", [len(held_out.pool)])

@evaluator(metrics={"pooled": Metric("answers", "none")}, needs=("pool",))
def about_the_pool(checkpoint, held_out):
    return rows(["all"], "pooled", [len(held_out.pool)])

@judge(pointwise=True)
def coin(prompts, completions, *, model="", odd=0.5):
    return pd.DataFrame({"score": [0.0] * len(completions)})

@judge(pointwise=False)
def place(prompts, first, second, *, model=""):
    return pd.DataFrame({"p_first": [1.0] * len(first)})

@judge(pointwise=True, idle=("budget", "calls.concurrency"))
def paid(prompts, completions, *, budget=None, calls=None, files=None):
    return pd.DataFrame({"score": [0.0] * len(completions)})

@evaluator(metrics={"broken": Metric("answers", "none")})
def x_breaks(checkpoint, held_out, *, breaks=False):
    if breaks:
        raise RuntimeError("killed")
    return rows(["all"], "broken", [1])
"""


def settings(**more):
    chosen = {"evaluators": ("about_the_inputs", "about_the_pool"), "pool": 2, "max_new_tokens": 4}
    return Evaluation(**{**chosen, **more})


def scored(root, name, evaluation):
    checkpoint = Checkpoint(root / name, root / "reference")
    folder = root / "held" if name == "reference" else root / "run"
    done = []
    planned = scoring_plan(evaluation, has_pairs=False, heldout="h")
    score(
        checkpoint,
        folder,
        root / "held",
        evaluation,
        planned,
        seed=7 if name == "reference" else 0,
        progress=done.append,
    )
    return done


def test_the_pool_is_drawn_once_for_the_reference_from_a_separate_stream(experiment):
    root, prompts = experiment
    assert read_prompts(root / "held") == prompts
    assert scored(root, "reference", settings()) == [
        "sampling",
        "further answers",
        "about_the_inputs",
        "about_the_pool",
    ]
    samples, pool = (pd.read_parquet(root / "held" / name) for name in (SAMPLES, POOL))
    assert list(samples) == list(pool)
    assert (len(samples), len(pool)) == (3, 6)
    assert not set(samples["text"]) & set(pool["text"])
    assert scored(root, "reference", settings()) == []
    assert scored(root, "reference", settings(pool=3)) == ["further answers", "about_the_inputs", "about_the_pool"]
    assert len(pd.read_parquet(root / "held" / POOL)) == 9


def test_at_another_temperature_answers_on_policy_are_drawn_as_well(experiment):
    root, _ = experiment
    evaluation = settings(evaluators=("kl",), temperature=0.5, pool=0)
    assert scored(root, "reference", evaluation) == ["sampling", "sampling at temperature 1", "kl"]
    assert scored(root, "policy", evaluation) == ["sampling", "sampling at temperature 1", "kl"]
    assert scored(root, "policy", evaluation) == []
    compared, on_policy = (pd.read_parquet(root / "run" / name) for name in (SAMPLES, ON_POLICY_SAMPLES))
    assert compared["prompt"].tolist() == on_policy["prompt"].tolist()
    assert compared["text"].tolist() != on_policy["text"].tolist()
    plain = settings(evaluators=("kl",), pool=0)
    (root / "held" / "samples.json").unlink()
    (root / "run" / "samples.json").unlink()
    assert scored(root, "reference", plain) == ["sampling"]
    scored(root, "policy", plain)
    assert pd.read_parquet(root / "run" / SAMPLES).equals(on_policy), "the very answers that temperature 1 gives"
    assert not (root / "run" / ON_POLICY_SAMPLES).exists()


def test_where_no_distance_is_requested_nothing_is_drawn_twice(experiment):
    root, _ = experiment
    assert "sampling at temperature 1" not in scored(root, "reference", settings(temperature=0.5))


def test_an_evaluator_of_the_reference_alone_scores_it_alone(experiment):
    root, _ = experiment
    scored(root, "reference", settings())
    assert scored(root, "policy", settings()) == ["sampling", "about_the_pool"]
    assert len(pd.read_parquet(root / "held" / "extra.parquet")) == 6
    assert not (root / "run" / "extra.parquet").exists()
    assert not (root / "run" / POOL).exists()


def test_a_run_is_scored_as_before_when_only_the_scores_of_the_reference_change(experiment):
    one = scoring_plan(settings(evaluators=("about_the_inputs",)), has_pairs=False, heldout="h")
    both = scoring_plan(settings(), has_pairs=False, heldout="h")
    pool = scoring_plan(settings(evaluators=("about_the_pool",)), has_pairs=False, heldout="h")
    assert both.key == pool.key != one.key
    assert scoring_plan(settings(pool=3), has_pairs=False, heldout="h").key != both.key


def test_without_a_pool_what_needs_it_is_left_out_or_refused(experiment):
    planned = scoring_plan(settings(evaluators=(), pool=0), has_pairs=False, heldout="h")
    assert {"evaluator": "about_the_pool", "why": "needs pool: set evaluation.pool to 1 or more"} in planned.left_out
    with pytest.raises(UserError, match=r"needs pool; set evaluation\.pool"):
        scoring_plan(settings(pool=0), has_pairs=False, heldout="h")


def test_a_judge_that_compares_is_given_as_such_and_meets_the_reference_alone(experiment, tmp_path):
    root, _ = experiment
    evaluation = settings(evaluators=("winrate",), judge="place")
    scored(root, "reference", evaluation)
    scored(root, "policy", evaluation)
    verdicts = pd.read_parquet(root / "run" / "verdicts.parquet")
    assert set(verdicts["b"]) == {"reference"}
    assert set(verdicts.loc[verdicts["raw"].notna(), "verdict"]) == {"a", "b"}
    assert scoring_plan(evaluation, has_pairs=False, heldout="h").opponents == ("reference",)
    assert scoring_plan(settings(judge="coin"), has_pairs=False, heldout="h").opponents == ("reference", "chosen")
    # Within trainings the one that tables show, and never another.
    assert scoring_plan(settings(judge="coin"), has_pairs=False, heldout="h").within.opponents == ("reference",)
    against = scoring_plan(settings(judge="coin", opponents=("chosen",)), has_pairs=False, heldout="h")
    assert against.within.opponents == ("chosen",)
    # Whose answers are compared with decides scores, and not how a policy's answers are ranked for a later round.
    usual = scoring_plan(settings(judge="coin"), has_pairs=False, heldout="h")
    assert against.needs["judge"] != usual.needs["judge"]
    keys = [rounds.key(tmp_path, Studies(), settings(judge="coin"), one) for one in (usual, against)]
    assert keys[0] == keys[1]


def test_a_judges_model_counts_by_its_content(experiment, tmp_path):
    from tests.evals.small_judges import save_judge

    def key(folder):
        named = settings(judge="place", judge_settings={"model": str(folder)})
        return scoring_plan(named, has_pairs=False, heldout="h").needs["judge"]

    first = key(save_judge(tmp_path / "judge"))
    assert key(tmp_path / "judge") == first
    assert key(save_judge(tmp_path / "judge", seed=5)) != first, "the same folder with other weights"


def test_a_judge_that_compares_takes_three_by_position(experiment, tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from dpobench import judge\n\n@judge(pointwise=False)\ndef two(prompts, first):\n    return None\n")
    judges.add_file(bad)
    with pytest.raises(UserError, match=r"takes \['prompts', 'first'\] by position, 3 expected"):
        judges.get("two")


def key_of(judge, **judge_settings):
    return scoring_plan(
        settings(evaluators=("winrate",), judge=judge, judge_settings=judge_settings), has_pairs=False, heldout="h"
    )


def test_settings_that_decide_no_verdict_score_nothing_anew(experiment):
    plain = key_of("paid").key
    for idle in ({"budget": {"max_requests": 5}}, {"calls": {"concurrency": 9}}, {"calls": {}}):
        assert key_of("paid", **idle).key == plain
    (winrate, arguments), *_ = key_of("paid", budget={"max_requests": 5}).chosen
    told = [key_of("paid", budget={"max_requests": most}).settings_of(winrate, arguments) for most in (5, 6)]
    assert told[0] == told[1]
    words = key_of("paid", calls={"mode": "text"}).key
    assert words != plain
    assert key_of("paid", calls={"mode": "text", "concurrency": 2}).key == words


def test_the_endpoints_limits_and_waiting_decide_no_verdict_and_its_decoding_does(monkeypatch):
    def key(budget=None, **calls):
        return key_of("api", model="m", base_url="http://127.0.0.1:1/v1", budget=budget, calls=calls).needs["judge"]

    assert key() == key({"max_requests": 10}) == key(concurrency=16, timeout=5.0, tries=2, longest_wait=9.0, key="K")
    assert len({key(), key(mode="text"), key(seed=1), key(reply_tokens=64)}) == 4


def test_files_within_tables_and_lists_count_by_their_content(experiment, tmp_path):
    file = tmp_path / "words.txt"
    for judge_settings in ({"files": {"one": str(file)}}, {"files": [1, [str(file)]]}):
        file.write_text("one")
        first = key_of("paid", **judge_settings).key
        file.write_text("two")
        assert key_of("paid", **judge_settings).key != first


def test_a_gold_function_counts_with_the_local_modules_it_imports(tmp_path, monkeypatch):
    (tmp_path / "measure.py").write_text("from weights_of_it import K\n\ndef score(prompt, answer):\n    return K\n")
    monkeypatch.syspath_prepend(tmp_path)
    keys = set()
    for number in range(2):
        (tmp_path / "weights_of_it.py").write_text(f"K = {number}\n")
        for function in (f"{tmp_path / 'measure.py'}:score", "measure:score"):
            keys.add(key_of("gold", function=function).needs["judge"])
    assert len(keys) == 4


def test_names_that_are_no_modules_are_names(tmp_path):
    for model in ("openai.gpt.mini", "no_such_package.model", "x" * 5000, "~nobody_at_all/x"):
        assert key_of("local", model=model).needs["judge"]


def test_what_the_reference_answered_survives_an_evaluator_that_breaks(experiment, monkeypatch):
    from dpobench.sweep import prepare
    from dpobench.sweep.inputs import Inputs

    root, prompts = experiment
    monkeypatch.setattr(prepare, "with_reference", lambda *given: [])
    evaluation = settings(evaluators=("about_the_inputs",))
    inputs = Inputs(root / "reference", "m", (), (), prompts, evaluation, {})

    def run(evaluation):
        heard = []
        planned = lambda key: scoring_plan(evaluation, has_pairs=False, heldout=key)  # noqa: E731
        return prepare.heldout_folder(inputs, planned, root / "out", "cpu", heard.append), heard

    folder, _ = run(evaluation)
    written = (folder / SAMPLES).stat().st_ino, (folder / "scores" / "about_the_inputs.parquet").stat().st_ino
    more = {"evaluators": ("about_the_inputs", "x_breaks")}
    with pytest.raises(RuntimeError, match="killed"):
        run(settings(**more, settings={"x_breaks": {"breaks": True}}))
    again, heard = run(settings(**more))
    assert again == folder
    assert heard == ["reference: answers and scores", "reference: x_breaks"]
    assert written == ((folder / SAMPLES).stat().st_ino, (folder / "scores" / "about_the_inputs.parquet").stat().st_ino)
    (folder / "prompts.jsonl").unlink()
    (folder / "DONE").unlink()
    assert "reference: log-probabilities of the held-out pairs" in run(settings(**more))[1]
