"""Held-out benchmarks by lm-eval, in this process, one row per document; finished tables are kept between experiments."""

import contextlib
import copy
import hashlib
import inspect
import json
import logging
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import datasets
import datasets.exceptions
import lm_eval
import lm_eval.api.task
import lm_eval.utils
import numpy as np
import pandas as pd
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from dpobench import Checkpoint, HeldOut, Metric, UserError, evaluator, score_rows
from dpobench.evaluation.benchmark_tasks import check_tasks, filled, shipped, tasks_key
from dpobench.evaluation.table_cache import kept
from dpobench.models.logprobs import Batch, Head, by_tokens, completion_hidden, within
from dpobench.models.protocols import Tokenizer

# The seeds of lm-eval's command line, for tasks that shuffle and for few-shot examples.
_PYTHON_SEED, _OTHER_SEED = 0, 1234
# Where a task's documents lie; the documents themselves are what counts.
_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "config_source")
# What generation settings may call the most tokens of an answer.
_LONGEST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


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
    them is not there. Finished tables are kept by content (checkpoint, documents, definition, code, settings) for other experiments;
    lm-eval's own cache, which is not keyed by model, is never used. Options are scored in batches by tokens, with logits of their own
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
        second filter's are called "metric,filter". `acc`, or `exact_match` where a task has no `acc`, is the benchmark; an
        `exact_match` beside `acc` is called "exact_match,filter" like lm-eval's own. Perplexities are those of each document.
        `chance` is one over the number of options; `truncated` tells the documents of a task that lost the start of their context
        (no rows where none did), `tied` those where another option is as likely as the best one, as where the tokenizer tells them
        not apart: lm-eval then takes the first, right or wrong (no rows where none is). A metric that is no number per document (F1
        over a corpus) is left out.

    Raises:
        UserError: nobody knows a task or its metric, its data cannot be loaded, a document or an answer does not fit the context, or
            the tokenizer has no chat template.
    """
    check_tasks(held_out.tasks, held_out.task_folders)
    _check_settings(checkpoint, limit, max_gen_toks, template)
    settings = {"limit": limit or None, "apply_chat_template": template}
    versions = [lm_eval.__version__, _written(checkpoint.tokenizer), _code()]
    told = [batch_size, budget, limit, max_gen_toks, template, *versions]
    names, folders = held_out.tasks, held_out.task_folders
    models: list[_Model] = []

    def score(name: str, task: Any) -> pd.DataFrame:
        if not models:
            models.append(_Model(checkpoint, budget, batch_size))
        return _scored(name, task, models[0], settings)

    with _quiet():
        what = ("benchmarks", tuple(names), tasks_key(names, folders), limit, max_gen_toks)
        asked = held_out.once(what, lambda: _asked(_load(names, folders), limit, max_gen_toks))
        tables = [
            kept("benchmarks", checkpoint, [*told, name, content], partial(score, name, task))
            for name, (task, content) in asked.items()
        ]
    return pd.concat(tables, ignore_index=True)


def _scored(name: str, task: Any, model: "_Model", settings: Mapping[str, Any]) -> pd.DataFrame:
    """One task's table, by lm-eval."""
    task.set_fewshot_seed(seed=_OTHER_SEED)
    with _own_randomness():
        found = lm_eval.evaluate(model, {"tasks": {name: task}}, bootstrap_iters=0, log_samples=True, **settings)
    return _rows(name, task, found["samples"][name], model)


def _check_settings(checkpoint: Checkpoint, limit: int, longest: int, template: bool) -> None:
    if limit < 0 or longest < 0:
        raise UserError(
            f"benchmarks: limit = {limit} and max_gen_toks = {longest} must not be negative; 0 sets no limit"
        )
    if template and not checkpoint.tokenizer.chat_template:
        raise UserError("benchmarks: template = true, but the tokenizer has no chat template; leave it out")


def _written(tokenizer: Tokenizer) -> str:
    """Content key of a tokenizer."""
    whole = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    told = [whole, tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    """Content key of this file."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _asked(tasks: Mapping[str, Any], limit: int, longest: int) -> dict[str, tuple[Any, str]]:
    """The tasks in the order of their names, each with a content key: its settings, its functions' code, the documents themselves."""
    found = {}
    for name, task in sorted(tasks.items()):
        if longest and task.OUTPUT_TYPE == "generate_until":
            task.set_config(key="generation_kwargs", value={"max_gen_toks": longest}, update=True)
        settings = {key: value for key, value in task.dump_config().items() if key not in _PLACES}
        settings["metadata"] = {
            key: value for key, value in (settings.get("metadata") or {}).items() if key not in _PLACES
        }
        docs, shots = list(task.eval_docs)[: limit or None], []
        if task.get_config("num_fewshot"):
            shots = list(task.fewshot_docs() or ())
        code = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in sorted(_sources(task))]
        told = json.dumps([settings, docs, shots, code], default=str, sort_keys=True)
        found[name] = (task, hashlib.sha256(told.encode()).hexdigest())
    return found


def _sources(task: Any) -> set[str]:
    """Files with the code that a task brings: of its class, and of functions in its settings."""
    found = [type(task)] + [value for value in vars(task.config).values() if inspect.isfunction(value)]
    return {file for one in found if (file := inspect.getsourcefile(one))}


class _Model(HFLM):  # type: ignore[misc] # lm-eval ships no types
    """lm-eval's model, without progress bars; names a document it cannot score before it computes anything.

    Args:
        checkpoint: its policy.
        budget: most tokens of a padded batch of options.
        batch_size: answers generated at a time.

    Attributes:
        truncated: (task, document) of contexts that lost their start.
    """

    def __init__(self, checkpoint: Checkpoint, budget: int, batch_size: int) -> None:
        # lm-eval gives the tokenizer a padding token.
        tokenizer = copy.deepcopy(checkpoint.tokenizer)
        super().__init__(pretrained=checkpoint.policy, tokenizer=tokenizer, batch_size=batch_size)
        self._budget = within(budget, self.device)
        self.truncated: set[tuple[str, int]] = set()
        self._asked: Sequence[Any] = ()

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        self._asked = requests
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._asked = ()

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        for asked in requests:
            context, settings = asked.args
            longest = next((settings[name] for name in _LONGEST if settings.get(name)), self.max_gen_toks)
            if longest >= self.max_length:
                raise UserError(
                    f"task {asked.task_name!r}: answers of up to {longest} tokens leave no room for a question in the model's "
                    f"context of {self.max_length}; set evaluation.settings.benchmarks.max_gen_toks lower, or leave the task out"
                )
            if len(self.tok_encode(context)) > self.max_length - longest:
                self.truncated.add((asked.task_name, asked.doc_id))
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        for asked, (_, context, option) in zip(self._asked, requests, strict=bool(self._asked)):
            where = f"task {asked.task_name!r} document {asked.doc_id}"
            if not 0 < len(option) <= self.max_length:
                raise UserError(
                    f"{where}: an option of {len(option)} tokens; the model's context holds 1 to {self.max_length}. "
                    f"Set evaluation.settings.benchmarks.limit to {asked.doc_id} or less, or leave the task out"
                )
            if len(context) + len(option) > self.max_length + 1:
                self.truncated.add((asked.task_name, asked.doc_id))
        sizes = [len(context) + len(option) for _, context, option in requests]
        fits = [index for index, size in enumerate(sizes) if size <= self.max_length]
        over = [index for index, size in enumerate(sizes) if size > self.max_length]
        found: list[Any] = [None] * len(sizes)
        head = Head(self.model)
        for group in by_tokens([sizes[index] for index in fits], self._budget):
            chosen = [fits[at] for at in group]
            for index, score in zip(chosen, self._options(head, [requests[i][1:] for i in chosen]), strict=True):
                found[index] = score
        if over:
            # lm-eval decides what of these the model reads; it never reads an option's last token.
            cut = super()._loglikelihood_tokens([requests[i] for i in over], disable_tqdm=True, override_bs=override_bs)
            for index, score in zip(over, cut, strict=True):
                found[index] = score
        return found

    @torch.no_grad()
    def _options(self, head: Head, sequences: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-probability of each option, nats, and whether each of its tokens is the likeliest."""
        batch = Batch(sequences, self.device)

        def compute(logps: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
            own = logps.gather(1, targets[:, None]).squeeze(1)
            return [torch.stack([own, (logps.argmax(-1) == targets).to(own)], 1)]

        values = head.values(compute, completion_hidden(self.model, batch), batch.targets)[0]
        lengths = batch.mask.sum(1).tolist()
        return [(float(one[:, 0].sum()), bool(one[:, 1].all())) for one in torch.split(values.cpu(), lengths)]


def _load(names: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """The tasks behind the names, by task name, with the few-shot settings of lm-eval's command line."""
    tasks: dict[str, Any] = {}
    with filled([*shipped(), *folders]) as places:
        local = TaskManager(include_path=list(places), include_defaults=False)
        for name in names:
            manager = local if name in local.task_index else _stock()
            try:
                with _own_randomness():
                    tasks |= manager.load([name])["tasks"]
            except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                hint = (
                    ""
                    if manager is local
                    else "; it comes from the hub: docs/benchmarks.md tells how to give local files instead"
                )
                raise UserError(f"task {name!r} cannot be loaded: {reason}{hint}") from error
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(f"task {name!r} runs generated code or needs images; neither is supported here")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return tasks


@lru_cache(maxsize=1)
def _stock() -> Any:
    """lm-eval's own index: a quarter of a minute, so once."""
    return TaskManager()


def _rows(name: str, task: Any, samples: Sequence[Mapping[str, Any]], model: _Model) -> pd.DataFrame:
    """Rows of one task."""
    first = samples[0]["filter"]
    values: dict[str, dict[str, float]] = {}
    for sample in samples:
        document = f"{name}/{sample['doc_id']}"
        for metric in sample["metrics"]:
            beside = metric == "exact_match" and "acc" in sample["metrics"]
            label = metric if sample["filter"] == first and not beside else f"{metric},{sample['filter']}"
            number = _number(metric, sample[metric], task)
            if number is not None:
                values.setdefault(label, {})[document] = number
    documents = {f"{name}/{sample['doc_id']}": sample for sample in samples}
    if task.OUTPUT_TYPE == "multiple_choice":
        values["chance"] = {key: 1 / len(task.doc_to_choice(sample["doc"])) for key, sample in documents.items()}
        tied = {key for key, sample in documents.items() if _is_tied(sample["filtered_resps"])}
        values |= {"tied": {key: float(key in tied) for key in documents}} if tied else {}
    cut = {f"{name}/{document}" for of, document in model.truncated if of == name}
    if cut:
        values["truncated"] = {key: float(key in cut) for key in documents}
    tables = [
        score_rows(list(found), metric, list(found.values()), group=name) for metric, found in sorted(values.items())
    ]
    return pd.concat(tables, ignore_index=True) if tables else score_rows([], "acc", [], group=name)


def _is_tied(responses: Sequence[tuple[float, bool]]) -> bool:
    logps = sorted((logp for logp, _ in responses), reverse=True)
    # Rounding may tell apart what the model does not.
    return len(logps) > 1 and math.isclose(logps[0], logps[1], rel_tol=1e-6)


def _number(metric: str, value: Any, task: Any) -> float | None:
    """A document's own value of a metric, or None where only a corpus has one."""
    if metric in ("word_perplexity", "byte_perplexity", "bits_per_byte") and isinstance(value, tuple):
        return float(task.aggregation()[metric]([value]))
    return float(value) if isinstance(value, (bool, int, float, np.bool_, np.number)) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While open, lm-eval and datasets log errors only and draw no progress bars, and a template is compiled once."""
    log, bars, drawn = logging.getLogger("lm_eval"), not datasets.are_progress_bars_disabled(), lm_eval.api.task.tqdm
    level = log.level
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # The one bar of lm-eval that no argument turns off.
    lm_eval.api.task.tqdm = lambda items, **_: items
    templates = lm_eval.utils.env
    compiled = lru_cache(maxsize=None)(templates.from_string)
    # lm-eval compiles the template of a task anew for every document.
    templates.from_string = compiled
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        del templates.from_string
        lm_eval.api.task.tqdm = drawn
        log.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """While open, global random numbers start where lm-eval's command line starts them; afterwards they go on as before."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(_PYTHON_SEED)
        np.random.seed(_OTHER_SEED)
        torch.manual_seed(_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
