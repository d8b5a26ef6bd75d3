"""Held-out benchmarks by lm-eval, in this process, one row per document."""

import contextlib
import copy
import difflib
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.api.registry
import lm_eval.api.task
import lm_eval.utils
import numpy as np
import pandas as pd
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from dpobench import Checkpoint, HeldOut, Metric, UserError, evaluator
from dpobench.logprobs import Batch, Head, by_tokens, completion_hidden, within
from dpobench.scores import rows

# The seeds of lm-eval's command line, for tasks that shuffle and for few-shot examples.
_PYTHON_SEED, _OTHER_SEED = 0, 1234


@evaluator(
    metrics={
        "acc": Metric("share", "higher", "benchmark", "accuracy"),
        "exact_match": Metric("share", "higher", "benchmark", "exact match"),
        "acc_norm": Metric("share", "higher", label="accuracy, length-normalised"),
        "chance": Metric("share", "none", label="accuracy of guessing"),
        "truncated": Metric("share", "lower", label="documents cut to the context"),
        "word_perplexity": Metric("perplexity", "lower", label="perplexity per word"),
        "byte_perplexity": Metric("perplexity", "lower", label="perplexity per byte"),
        "bits_per_byte": Metric("bits per byte", "lower", label="bits per byte"),
        "*": Metric("score", "none", label="further metric of the task"),
    },
    needs=("tasks",),
)
def benchmarks(checkpoint: Checkpoint, held_out: HeldOut, *, batch_size: int = 16, budget: int = 8192) -> pd.DataFrame:
    """Score the policy on lm-eval tasks, zero-shot unless a task says otherwise, as `lm_eval run` would.

    Names are looked up in the local folders first; lm-eval's own index of some 14,000 names is read only when one of them is
    not there. Nothing is cached: lm-eval's cache is not keyed by model. Options are scored in batches by tokens, with logits of
    their own tokens alone, where lm-eval computes those of every position in batches of equal count.

    Args:
        checkpoint: the policy.
        held_out: task, group or tag names, and folders with local YAML definitions.
        batch_size: answers generated at a time; the same for all checkpoints that are compared.
        budget: most tokens of a padded batch of options; on a CPU never more than its caches serve well.

    Returns: one row per document and metric; `group` is the task, `prompt` is "task/number". Metrics have lm-eval's names; a
        second filter's are called "metric,filter". `acc`, or `exact_match` where a task has no `acc`, is the benchmark; an
        `exact_match` beside `acc` is called "exact_match,filter" like lm-eval's own. Perplexities are those of each document.
        `chance` is one over the number of options; `truncated` tells the documents of a task that lost the start of their context
        (no rows where none did). A metric that is no number per document (F1 over a corpus) is left out.

    Raises:
        UserError: nobody knows a task or its metric, its data cannot be loaded, or a document does not fit the context.
    """
    with _quiet(), _own_randomness():
        tasks = _load(held_out.tasks, held_out.task_folders)
        # lm-eval gives the tokenizer a padding token.
        model = _Model(
            budget,
            pretrained=checkpoint.policy,
            tokenizer=copy.deepcopy(checkpoint.tokenizer),
            batch_size=batch_size,
        )
        found = lm_eval.evaluate(model, {"tasks": tasks}, bootstrap_iters=0, log_samples=True)
    tables = [_rows(name, tasks[name], samples, model) for name, samples in sorted(found["samples"].items())]
    return pd.concat(tables, ignore_index=True)


class _Model(HFLM):
    """lm-eval's model, without progress bars; names a document it cannot score before it computes anything.

    Args:
        budget: most tokens of a padded batch of options.
        settings: of lm-eval's model.

    Attributes:
        truncated: (task, document) of contexts that lost their start.
    """

    def __init__(self, budget: int, **settings: Any) -> None:
        super().__init__(**settings)
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
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        for asked, (_, context, option) in zip(self._asked, requests, strict=bool(self._asked)):
            where = f"task {asked.task_name!r} document {asked.doc_id}"
            if not 0 < len(option) <= self.max_length:
                raise UserError(
                    f"{where}: an option of {len(option)} tokens; the model's context holds 1 to {self.max_length}. "
                    "Leave the document or the task out"
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
            for index, score in zip(chosen, self._scored(head, [requests[i][1:] for i in chosen]), strict=True):
                found[index] = score
        if over:
            # lm-eval decides what of these the model reads; it never reads an option's last token.
            cut = super()._loglikelihood_tokens([requests[i] for i in over], disable_tqdm=True, override_bs=override_bs)
            for index, score in zip(over, cut, strict=True):
                found[index] = score
        return found

    @torch.no_grad()
    def _scored(self, head: Head, sequences: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-probability of each option, nats, and whether each of its tokens is the likeliest."""
        batch = Batch(sequences, self.device)

        def compute(logps: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
            own = logps.gather(1, targets[:, None]).squeeze(1)
            return [torch.stack([own, (logps.argmax(-1) == targets).to(own)], 1)]

        values = head.values(compute, completion_hidden(self.model, batch), batch.targets)[0]
        lengths = batch.mask.sum(1).tolist()
        return [(float(one[:, 0].sum()), bool(one[:, 1].all())) for one in values.cpu().split(lengths)]


def _load(names: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """The tasks behind the names, by task name, with the few-shot settings of lm-eval's command line."""
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"task folder {folder}: no such folder")
    paths = tuple(str(folder) for folder in folders)
    local = TaskManager(include_path=list(paths), include_defaults=False)
    tasks: dict[str, Any] = {}
    for name in names:
        manager = local if name in local.task_index else _with_stock(paths)
        if name not in manager.task_index:
            raise _unknown(name, manager.all_tasks, folders)
        _check_metrics(name, manager.task_index[name].cfg or {})
        try:
            tasks |= manager.load([name])["tasks"]
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"task {name!r} cannot be loaded: {reason}") from error
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(f"task {name!r} runs generated code or needs images; neither is supported here")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_OTHER_SEED)
    return tasks


def _check_metrics(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a mistyped metric: lm-eval would look for code of that name on the hub, and run it."""
    known = list(lm_eval.api.registry.metric_registry)
    for entry in config.get("metric_list") or ():
        # A function appears here as a path.
        metric, own = entry.get("metric"), entry.get("hf_evaluate") or config.get("process_results")
        if isinstance(metric, str) and "/" not in metric and metric not in known and not own:
            nearest = difflib.get_close_matches(metric, known, n=1, cutoff=0.5)
            guess = f"; did you mean {nearest[0]!r}?" if nearest else f"; it has {', '.join(sorted(known))}"
            raise UserError(f"task {name!r} asks for metric {metric!r}, which lm-eval does not have{guess}")


@lru_cache(maxsize=1)
def _with_stock(folders: tuple[str, ...]) -> Any:
    """lm-eval's own index beside the local folders: a quarter of a minute, so once."""
    return TaskManager(include_path=list(folders))


def _unknown(name: str, known: Sequence[str], folders: Sequence[Path]) -> UserError:
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    guess = f" Nearest: {', '.join(map(repr, nearest))}." if nearest else ""
    unread = [file for folder in folders for file in sorted(Path(folder).rglob(f"{name}.yaml"))]
    hint = f" {unread[0]} is there, but lm-eval finds no task of that name in it." if unread else ""
    looked = ", ".join(map(str, folders)) or "no local folder"
    return UserError(f"no task is called {name!r} in {looked} or in lm-eval.{guess}{hint}")


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
    cut = {f"{name}/{document}" for of, document in model.truncated if of == name}
    if cut:
        values["truncated"] = {key: float(key in cut) for key in documents}
    tables = [rows(list(found), metric, list(found.values()), group=name) for metric, found in sorted(values.items())]
    return pd.concat(tables, ignore_index=True) if tables else rows([], "acc", [], group=name)


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
