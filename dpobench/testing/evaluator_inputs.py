"""A small world in which an evaluator shows what it is: two tiny models, answers, pairs, judges of both kinds, a task."""

import copy
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dpobench.data.prompts import Prompt
from dpobench.data.tokens import TokenPair
from dpobench.evaluation.heldout import HeldOut, ObjectiveInputs, OnPolicySamples
from dpobench.evaluation.score import random_state
from dpobench.losses.registry import variants
from dpobench.models.checkpoint import Checkpoint
from dpobench.models.generate import Sampling
from dpobench.models.logprobs import score_sequences

# What an evaluator may declare to need.
NEEDS = ("judge", "pairs", "pool", "tasks", "objectives", "on_policy")
END, LETTERS = 0, "abcdefghijklmnopqrstuvwxyz"
DRAWS, PROMPTS = 2, 4
_TASK = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["a", "b"]
doc_to_target: answer
"""


@dataclass(frozen=True)
class Situation:
    """One call of an evaluator.

    Args:
        words: what is special about it, as a message names it.
        checkpoint: what is scored.
        available: which of `NEEDS` are there.
        compares: whether judges compare two answers; else they score one.
        tempered: whether the answers to be compared are drawn at another temperature than 1.
    """

    words: str
    checkpoint: Checkpoint
    available: frozenset[str]
    compares: bool = False
    tempered: bool = False


@contextmanager
def checkpoints() -> Iterator[tuple[Checkpoint, Checkpoint]]:
    """A trained policy and its reference, in a folder that is removed afterwards; no cache of the user's is touched."""
    threads, cache = torch.get_num_threads(), os.environ.get("DPOBENCH_CACHE")
    with tempfile.TemporaryDirectory() as name, random_state(0):
        os.environ["DPOBENCH_CACHE"] = str(Path(name, "cache"))
        # On models of a few numbers threads only wait for one another.
        torch.set_num_threads(1)
        try:
            yield _checkpoints(Path(name))
        finally:
            torch.set_num_threads(threads)
            if cache is None:
                del os.environ["DPOBENCH_CACHE"]
            else:
                os.environ["DPOBENCH_CACHE"] = cache


def _checkpoints(root: Path) -> tuple[Checkpoint, Checkpoint]:
    from safetensors.torch import save_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<end>", "<unk>", *LETTERS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unk>")
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=None, eos_token_id=END, initializer_range=0.6,
    )  # fmt: skip
    both = {"policy": LlamaForCausalLM(config).eval(), "reference": LlamaForCausalLM(config).eval()}
    for name, model in both.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(config.to_json_string())
        save_model(model, str(root / name / "model.safetensors"), metadata={"format": "pt"})
        tokenizer.save_pretrained(root / name)
    documents = [{"question": "c d", "answer": 0}, {"question": "e", "answer": 1}]
    (root / "letters.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (root / "letters.yaml").write_text(_TASK % (root / "letters.jsonl"))
    policy = Checkpoint(root / "policy", root / "reference", run=_run())
    reference = Checkpoint(root / "reference", root / "reference")
    for checkpoint in (policy, reference):
        # As if loaded from the folders, which hold the same.
        vars(checkpoint).update(policy=both[checkpoint.folder.name], reference=both["reference"], tokenizer=tokenizer)
    return policy, reference


def _run() -> dict[str, object]:
    """A run with a loss that needs the pairs' log-probabilities alone."""
    losses = (variants.get(name) for name in variants.names())
    loss = next(loss for loss in losses if not (loss.needs or loss.columns or loss.sees_whole_batch))
    params = loss.arguments({})
    return {
        "id": "run",
        "variant": loss.name,
        "params": params,
        "strength": loss.strength,
        "unit": loss.unit,
        "seed": 0,
    }


def prompts() -> list[Prompt]:
    """Four prompts, two of them with a preferred answer."""
    return [
        Prompt(
            f"p{number}",
            ({"role": "user", "content": f"a {LETTERS[number]}"},),
            (2, 2 + number),
            chosen=f"b {LETTERS[number]}" if number % 2 else None,
        )
        for number in range(PROMPTS)
    ]


def answers(seed: int) -> pd.DataFrame:
    """Two answers to each prompt, columns as `HeldOut.samples`; the first of all is the same for every seed."""
    drawn = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for prompt in prompts():
        for draw in range(DRAWS):
            ids = drawn.integers(2, 2 + len(LETTERS), size=int(drawn.integers(4, 9))).tolist() if rows else [3, 4, 5]
            ended = bool(drawn.random() < 0.8) or not rows
            text = " ".join(LETTERS[number - 2] for number in ids)
            token_ids = [*ids, END] if ended else ids
            rows.append({"prompt": prompt.id, "draw": draw, "text": text, "token_ids": token_ids, "ended": ended})
    return pd.DataFrame(rows)


def pairs(reference: Checkpoint) -> list[TokenPair]:
    """Held-out pairs with the reference's log-probabilities, two of them to one prompt."""
    ids = [prompt.token_ids for prompt in prompts()]
    bare = [
        TokenPair(f"t{n}", np.array(ids[max(0, n - 1)]), np.array([4 + n, 7, END]), np.array([9, 6 + n, 5, END]))
        for n in range(PROMPTS)
    ]
    sequences = [(pair.prompt, side) for pair in bare for side in (pair.chosen, pair.rejected)]
    logps = score_sequences(reference.reference, sequences)
    return [pair.with_reference(logps[2 * n], logps[2 * n + 1]) for n, pair in enumerate(bare)]


def scores(prompts: Sequence[Prompt], completions: Sequence[str]) -> pd.DataFrame:
    """A judge that scores: the number of different letters."""
    return pd.DataFrame({"score": [float(len(set(text.split()))) for text in completions]})


def compares(prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> pd.DataFrame:
    """A judge that compares: more different letters win, and where there are as many, the answer shown first."""
    more = [len(set(a.split())) - len(set(b.split())) for a, b in zip(first, second, strict=True)]
    return pd.DataFrame({"p_first": [0.9 if gap >= 0 else 0.2 for gap in more]})


def held_out(situation: Situation, pairs_scored: Sequence[TokenPair], *, reverse: bool = False) -> HeldOut:
    """What the evaluator is given: fresh tables, with what is available in the situation and nothing else.

    Args:
        situation: which call.
        pairs_scored: from `pairs`.
        reverse: prompts and answers in the opposite order.
    """
    there, base = situation.available, answers(1)
    samples = base if situation.checkpoint.is_reference else answers(2)
    held = [copy.deepcopy(pair) for pair in pairs_scored]
    named = {"pairwise": compares} if situation.compares else {"judge": scores}
    inputs = HeldOut(prompts(), samples.copy(deep=True), base.copy(deep=True), sampling=Sampling(draws=DRAWS))
    if situation.compares:  # what a judge whose calls cost money is asked by default
        inputs = replace(inputs, opponents=("reference",))
    if situation.tempered:
        on_policy = OnPolicySamples(samples.copy(deep=True), base.copy(deep=True))
        inputs = replace(inputs, sampling=Sampling(draws=DRAWS, temperature=0.5), on_policy=on_policy)
    if "pairs" in there:
        inputs = replace(inputs, pairs=held)
    if "pool" in there:
        inputs = replace(inputs, pool=answers(3))
    if "tasks" in there:
        folder = situation.checkpoint.reference_folder.parent
        inputs = replace(inputs, tasks=("letters",), task_folders=(folder,))
    if "judge" in there:
        inputs = replace(inputs, **named)
    if "objectives" in there:
        by_judge = ObjectiveInputs(**named, key="judge")
        inputs = replace(inputs, objectives={"letters": by_judge, "pairs": ObjectiveInputs(pairs=held)})
    return _reversed(inputs) if reverse else inputs


def _reversed(inputs: HeldOut) -> HeldOut:
    def reverse_rows(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.iloc[::-1].reset_index(drop=True)

    # The reference's answers stay where they are: whoever matches them by place finds another prompt's.
    on_policy = inputs.on_policy
    if on_policy is not None:
        on_policy = OnPolicySamples(reverse_rows(on_policy.policy), on_policy.reference)
    return replace(
        inputs,
        prompts=list(inputs.prompts)[::-1],
        samples=reverse_rows(inputs.samples),
        on_policy=on_policy,
    )


def situations(
    needs: Collection[str], reference_only: bool, both: tuple[Checkpoint, Checkpoint]
) -> Iterator[Situation]:
    """Every call that an evaluator must bear: with what it declares alone, then with everything there is.

    Args:
        needs: what it declares.
        reference_only: whether it scores the reference alone.
        both: policy and reference.
    """
    if "on_policy" in needs:
        words = "for a policy with answers drawn at another temperature"
        yield Situation(words, both[1] if reference_only else both[0], frozenset(needs), tempered=True)
    judged = ({"judge", "objectives"} & set(needs)) != set()
    # A task takes seconds: only where it is declared.
    everything = frozenset(need for need in NEEDS if need != "tasks" or need in needs)
    for available, what in ((frozenset(needs), "what it declares"), (everything, "everything there is")):
        for compared in (False, True) if judged or available == everything else (False,):
            for checkpoint in both[1:] if reference_only else both:
                who = "the reference" if checkpoint.is_reference else "a policy"
                kind = f" and a judge that {'compares' if compared else 'scores'}" if "judge" in available else ""
                yield Situation(f"for {who} with {what}{kind}", checkpoint, available, compared)
