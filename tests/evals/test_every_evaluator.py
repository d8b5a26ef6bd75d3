"""What holds for all evaluators: their tables fit the contract, for a policy and for the reference, from files as from memory."""

import json

import numpy as np
import pandas as pd
import pytest

from dpobench import Checkpoint, HeldOut, Prompt
from dpobench.artifacts.scores import check
from dpobench.data.tokens import TokenPair, read_pairs, write_pairs
from dpobench.evaluation.heldout import ObjectiveInputs
from dpobench.evaluation.registry import evaluators
from dpobench.models.generate import Sampling, sample
from dpobench.models.logprobs import score_sequences

SAMPLING = Sampling(draws=2, max_new_tokens=10, batch=4)
TASK = """
task: pick
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["a", "b"]
doc_to_target: answer
"""


@pytest.fixture(scope="module")
def scored(tiny, tokenizer, tmp_path_factory):
    """Every evaluator's table for a policy and for its reference, everything read back from disk."""
    root = tmp_path_factory.mktemp("run")
    for name, seed in (("policy", 1), ("reference", 2)):
        tiny.llama(28, seed=seed).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    docs = [{"question": "c d", "answer": 0}, {"question": "e", "answer": 1}]
    (root / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (root / "pick.yaml").write_text(TASK % (root / "docs.jsonl"))
    prompts = [Prompt(f"p{i}", ({"role": "user", "content": "a b"},), (2, 3 + i), chosen="a") for i in range(5)]
    policy, reference = (Checkpoint(root / name, root / "reference") for name in ("policy", "reference"))
    write_pairs(root / "pairs.parquet", pairs_of(reference.policy))
    for name, checkpoint in (("policy", policy), ("reference", reference)):
        drawn = sample(checkpoint.policy, checkpoint.tokenizer, prompts, SAMPLING)
        drawn.to_parquet(root / f"{name}.parquet", index=False)
    base = pd.read_parquet(root / "reference.parquet")
    tables = {}
    for checkpoint, samples in ((policy, pd.read_parquet(root / "policy.parquet")), (reference, base)):
        held_out = HeldOut(
            prompts,
            samples,
            base,
            pairs=read_pairs(root / "pairs.parquet"),
            tasks=("pick",),
            task_folders=(root,),
            judge=lambda prompts, texts: pd.DataFrame({"score": [float(len(text)) for text in texts]}),
            sampling=SAMPLING,
            pool=base,
            objectives={
                "words": ObjectiveInputs(judge=words, key="w"),
                "pairs": ObjectiveInputs(pairs=read_pairs(root / "pairs.parquet")),
            },
        )
        for name in evaluators.names():
            tables[name, checkpoint.is_reference] = evaluators.get(name).function(checkpoint, held_out)
    return tables


def words(prompts, texts):
    return pd.DataFrame({"score": [float(len(text.split())) for text in texts]})


def pairs_of(reference):
    pairs = [TokenPair(f"t{i}", np.array([2, 3]), np.array([4 + i, 0]), np.array([5, 6, 0])) for i in range(3)]
    logps = score_sequences(reference, [(p.prompt, side) for p in pairs for side in (p.chosen, p.rejected)])
    return [pair.with_reference(logps[2 * i], logps[2 * i + 1]) for i, pair in enumerate(pairs)]


@pytest.mark.parametrize("is_reference", [False, True])
@pytest.mark.parametrize("name", evaluators.names())
def test_the_table_fits_the_contract(scored, name, is_reference):
    frame = scored[name, is_reference]
    check(frame, evaluators.get(name).spec.metrics, name)
    assert len(frame)
    assert np.isfinite(frame["value"]).all()


@pytest.mark.parametrize("name", evaluators.names())
def test_the_reference_gets_every_metric_the_policy_gets(scored, name):
    policy, reference = (scored[name, is_reference] for is_reference in (False, True))
    assert set(policy["metric"]) <= set(reference["metric"])


def test_each_metric_declares_what_a_report_needs():
    roles = [
        metric.role
        for name in evaluators.names()
        for key, metric in evaluators.get(name).spec.metrics.items()
        if metric.label and metric.unit and key
    ]
    declared = sum(len(evaluators.get(name).spec.metrics) for name in evaluators.names())
    assert len(roles) == declared
    assert {"headline", "distance", "benchmark", "preference", "length"} <= set(roles)
    assert roles.count("headline") == roles.count("distance") == roles.count("length") == 1


def test_against_itself_the_reference_ties_and_has_not_moved(scored, tiny):
    assert tiny.values(scored["winrate", True], "win_rate", "reference") == [0.5] * 10
    for name, metric, value in (("kl", "kl", 0.0), ("preference", "accuracy", 0.5), ("preference", "margin", 0.0)):
        assert set(tiny.values(scored[name, True], metric)) == {value}
    assert min(tiny.values(scored["kl", False], "kl")) > 0
