"""Held-out benchmarks by lm-eval, in this process, one row per document; finished tables are cached between experiments."""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import lm_eval
import numpy as np
import pandas as pd

from dpobench import Checkpoint, HeldOut, Metric, UserError, evaluator, score_rows
from dpobench.evals import _lm_eval
from dpobench.evals._lm_eval import Document, Model, Task
from dpobench.evaluation.benchmark_tasks import check_tasks, tasks_key
from dpobench.evaluation.table_cache import cached_table
from dpobench.models.protocols import Tokenizer


@evaluator(
    metrics={
        "acc": Metric("share", "higher", "benchmark", "accuracy"),
        "exact_match": Metric("share", "higher", "benchmark", "exact match"),
        "acc_norm": Metric("share", "higher", label="accuracy, length-normalised"),
        "chance": Metric("share", "none", label="accuracy of guessing"),
        "truncated": Metric("share", "lower", label="documents cut to the context"),
        "tied": Metric("share", "lower", label="documents whose options look alike to the model"),
        "word_perplexity": Metric("perplexity", "lower", label="perplexity per word"),
        "byte_perplexity": Metric("perplexity", "lower", label="perplexity per byte"),
        "bits_per_byte": Metric("bits per byte", "lower", label="bits per byte"),
        "*": Metric("score", "none", label="further metric of the task"),
    },
    needs=("tasks",),
)
def benchmarks(
    checkpoint: Checkpoint,
    held_out: HeldOut,
    *,
    batch_size: int = 16,
    budget: int = 8192,
    limit: int = 0,
    max_gen_toks: int = 0,
    template: bool = False,
) -> pd.DataFrame:
    """Score the policy on lm-eval tasks, each as `lm_eval run` on that task alone would.

    Names are looked up in the shipped and the user's folders first; lm-eval's own index of some 14,000 names is read only when one of
    them is not there. Finished tables are cached by content (checkpoint, documents, definition, code, settings) for other experiments;
    lm-eval's own cache, which is not keyed by model, is never used. Options are scored in batches by tokens, with logits of their
    tokens alone, where lm-eval computes those of every position in batches of equal count.

    Args:
        checkpoint: the policy.
        held_out: task, group or tag names, and folders with local YAML definitions.
        batch_size: answers generated at a time; the same for all checkpoints that are compared.
        budget: most tokens of a padded batch of options; on a CPU never more than its caches serve well.
        limit: documents of each task, the first ones, like lm-eval's `--limit`; 0 for all.
        max_gen_toks: most tokens of a generated answer; 0 leaves it to the task.
        template: whether questions are put through the tokenizer's chat template.

    Returns: one row per document and metric; `group` is the task, `prompt` is "task/number". Metrics have lm-eval's names; a
        second filter's are called "metric,filter". `acc`, or `exact_match` where a task has no `acc`, is the benchmark, 1 where the
        document is solved and 0 where it is not; an `exact_match` besides `acc` is called "exact_match,filter" like lm-eval's own.
        Perplexities are those of each document. `chance` is one over the number of options; `truncated` is 1 for the documents that
        lost the start of their context (no rows where none did), `tied` where another option is as likely as the best one, as where
        the tokenizer does not distinguish them: lm-eval then takes the first, right or wrong (no rows where none is). A metric that
        is no number per document (F1 over a corpus) is left out. None of them has a known value for the reference: it is the number
        to compare with.

    Raises:
        UserError: nobody knows a task or its metric, its data cannot be loaded, a document or an answer does not fit the context, or
            the tokenizer has no chat template.
    """
    check_tasks(held_out.tasks, held_out.task_folders)
    if limit < 0 or max_gen_toks < 0:
        raise UserError(
            f"benchmarks: limit = {limit} and max_gen_toks = {max_gen_toks} must not be negative; 0 sets no limit"
        )
    if template and not checkpoint.tokenizer.chat_template:
        raise UserError("benchmarks: template = true, but the tokenizer has no chat template; leave it out")
    versions = [lm_eval.__version__, _tokenizer_key(checkpoint.tokenizer), _code_key()]
    settings = [batch_size, budget, limit, max_gen_toks, template, *versions]
    names, folders = held_out.tasks, held_out.task_folders

    @lru_cache(maxsize=1)
    def model() -> Model:
        return Model(checkpoint, budget, batch_size)

    def score(name: str, task: Task) -> pd.DataFrame:
        return _rows(name, task, _lm_eval.evaluate(name, task, model(), limit, template), model())

    with _lm_eval.quiet():
        key = ("benchmarks", tuple(names), tasks_key(names, folders), limit, max_gen_toks)
        tasks = held_out.compute_once(
            key, lambda: _lm_eval.with_keys(_lm_eval.load(names, folders), limit, max_gen_toks)
        )
        tables = [
            cached_table("benchmarks", checkpoint, [*settings, name, content], partial(score, name, task))
            for name, (task, content) in tasks.items()
        ]
    return pd.concat(tables, ignore_index=True)


def _tokenizer_key(tokenizer: Tokenizer) -> str:
    """Content key of a tokenizer."""
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    content = [vocabulary, tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


@lru_cache(maxsize=1)
def _code_key() -> str:
    """Content key of the code that makes a table."""
    files = (__file__, _lm_eval.__file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def _rows(name: str, task: Task, documents: Sequence[Document], model: Model) -> pd.DataFrame:
    """Rows of one task."""
    first = documents[0].filter
    values: dict[str, dict[str, float]] = {}
    by_name: dict[str, Document] = {}
    for document in documents:
        place = f"{name}/{document.number}"
        by_name[place] = document
        for metric, value in document.values.items():
            second = metric == "exact_match" and "acc" in document.values
            label = metric if document.filter == first and not second else f"{metric},{document.filter}"
            number = _number(metric, value, task)
            if number is not None:
                values.setdefault(label, {})[place] = number
    if task.OUTPUT_TYPE == "multiple_choice":
        values["chance"] = {place: 1 / len(task.doc_to_choice(one.content)) for place, one in by_name.items()}
        tied = {place for place, document in by_name.items() if _is_tied(document.responses)}
        values |= {"tied": {place: float(place in tied) for place in by_name}} if tied else {}
    cut = {f"{name}/{number}" for task_name, number in model.truncated if task_name == name}
    if cut:
        values["truncated"] = {place: float(place in cut) for place in by_name}
    tables = [
        score_rows(list(numbers), metric, list(numbers.values()), group=name)
        for metric, numbers in sorted(values.items())
    ]
    return pd.concat(tables, ignore_index=True) if tables else score_rows([], "acc", [], group=name)


def _is_tied(responses: Sequence[tuple[float, bool]]) -> bool:
    logps = sorted((logp for logp, _ in responses), reverse=True)
    # Rounding may separate what the model does not.
    return len(logps) > 1 and math.isclose(logps[0], logps[1], rel_tol=1e-6)


def _number(metric: str, value: object, task: Task) -> float | None:
    """A document's own value of a metric, or None where only a corpus has one."""
    if metric in ("word_perplexity", "byte_perplexity", "bits_per_byte") and isinstance(value, tuple):
        return float(task.aggregation()[metric]([value]))
    return float(value) if isinstance(value, (bool, int, float, np.bool_, np.number)) else None
