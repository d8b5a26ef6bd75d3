"""lm-eval, which ships no types: its tasks, its model and its results as `benchmarks` uses them."""

import contextlib
import copy
import hashlib
import inspect
import json
import logging
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import datasets
import datasets.exceptions
import lm_eval
import lm_eval.api.task
import lm_eval.utils
import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from dpobench import Checkpoint, UserError
from dpobench.evaluation.benchmark_tasks import filled, shipped
from dpobench.models.logprobs import Batch, Head, by_tokens, completion_hidden, within

# The seeds of lm-eval's command line, for tasks that shuffle and for few-shot examples.
_PYTHON_SEED, _OTHER_SEED = 0, 1234
# Where a task's documents lie; the documents themselves are what counts.
_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "config_source")
# Names of the most tokens of an answer among generation settings.
_LONGEST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class Task(Protocol):
    """A task of lm-eval."""

    OUTPUT_TYPE: str
    config: object

    @property
    def eval_docs(self) -> Iterable[Mapping[str, object]]:
        """The documents that are scored."""
        ...

    def fewshot_docs(self) -> Iterable[Mapping[str, object]] | None:
        """The documents that few-shot examples are drawn from."""
        ...

    def doc_to_choice(self, doc: Mapping[str, object]) -> Sequence[str]:
        """The options of a document."""
        ...

    def aggregation(self) -> Mapping[str, Callable[[Sequence[object]], float]]:
        """From the values of all documents to one number, by metric."""
        ...

    def get_config(self, key: str) -> object:
        """A setting."""
        ...

    def set_config(self, key: str, value: object, update: bool = False) -> None:
        """Change a setting; with `update` only the entries named."""
        ...

    def dump_config(self) -> Mapping[str, Any]:
        """All settings, functions as text."""
        ...

    def set_fewshot_seed(self, seed: int) -> None:
        """Fix the draws of few-shot examples."""
        ...


class Request(Protocol):
    """What lm-eval wants of the model for one document: `args` is context and option, or context and generation settings."""

    args: tuple[str, Any]
    task_name: str
    doc_id: int


@dataclass(frozen=True)
class Document:
    """A document as lm-eval scored it.

    Args:
        number: its place in the task.
        content: the document.
        filter: how answers were read.
        values: what each metric gives for it: mostly a number.
        responses: log-probability of each option, nats, and whether each of its tokens is the likeliest; texts of generated answers.
    """

    number: int
    content: Mapping[str, object]
    filter: str
    values: Mapping[str, object]
    responses: Sequence[tuple[float, bool]]


class Model(HFLM):  # type: ignore[misc] # lm-eval ships no types
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
        self._requests: Sequence[Request] = ()

    def loglikelihood(self, requests: Sequence[Request], disable_tqdm: bool = True) -> Any:
        self._requests = requests
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._requests = ()

    def loglikelihood_rolling(self, requests: Sequence[Request], disable_tqdm: bool = True) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = True) -> Any:
        for request in requests:
            context, settings = request.args
            longest = next((settings[name] for name in _LONGEST if settings.get(name)), self.max_gen_toks)
            if longest >= self.max_length:
                raise UserError(
                    f"task {request.task_name!r}: answers of up to {longest} tokens leave no room for a question in the model's "
                    f"context of {self.max_length}; set evaluation.settings.benchmarks.max_gen_toks lower, or leave the task out"
                )
            if len(self.tok_encode(context)) > self.max_length - longest:
                self.truncated.add((request.task_name, request.doc_id))
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        for request, (_, context, option) in zip(self._requests, requests, strict=bool(self._requests)):
            where = f"task {request.task_name!r} document {request.doc_id}"
            if not 0 < len(option) <= self.max_length:
                raise UserError(
                    f"{where}: an option of {len(option)} tokens; the model's context holds 1 to {self.max_length}. "
                    f"Set evaluation.settings.benchmarks.limit to {request.doc_id} or less, or leave the task out"
                )
            if len(context) + len(option) > self.max_length + 1:
                self.truncated.add((request.task_name, request.doc_id))
        sizes = [len(context) + len(option) for _, context, option in requests]
        fits = [index for index, size in enumerate(sizes) if size <= self.max_length]
        over = [index for index, size in enumerate(sizes) if size > self.max_length]
        scores: list[Any] = [None] * len(sizes)
        head = Head(self.model)
        for group in by_tokens([sizes[index] for index in fits], self._budget):
            chosen = [fits[at] for at in group]
            for index, score in zip(chosen, self._options(head, [requests[i][1:] for i in chosen]), strict=True):
                scores[index] = score
        if over:
            # lm-eval decides what of these the model reads; it never reads an option's last token.
            cut = super()._loglikelihood_tokens([requests[i] for i in over], disable_tqdm=True, override_bs=override_bs)
            for index, score in zip(over, cut, strict=True):
                scores[index] = score
        return scores

    @torch.no_grad()
    def _options(
        self, head: Head, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        """Log-probability of each option, nats, and whether each of its tokens is the likeliest."""
        batch = Batch(sequences, self.device)

        def compute(logps: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
            of_target = logps.gather(1, targets[:, None]).squeeze(1)
            return [torch.stack([of_target, (logps.argmax(-1) == targets).to(of_target)], 1)]

        values = head.values(compute, completion_hidden(self.model, batch), batch.targets)[0]
        lengths = batch.mask.sum(1).tolist()
        return [(float(one[:, 0].sum()), bool(one[:, 1].all())) for one in torch.split(values.cpu(), lengths)]


def evaluate(name: str, task: Task, model: Model, limit: int, template: bool) -> list[Document]:
    """Score a model on one task, as `lm_eval run` would.

    Args:
        name: of the task.
        task: from `load`.
        model: the model.
        limit: first documents scored; 0 for all.
        template: whether questions are put through the tokenizer's chat template.

    Returns: each document once a filter, in lm-eval's order.
    """
    task.set_fewshot_seed(seed=_OTHER_SEED)
    with _seeds_of_lm_eval():
        results = lm_eval.evaluate(
            model,
            {"tasks": {name: task}},
            bootstrap_iters=0,
            log_samples=True,
            limit=limit or None,
            apply_chat_template=template,
        )
    return [
        Document(
            number=sample["doc_id"],
            content=sample["doc"],
            filter=sample["filter"],
            values={metric: sample[metric] for metric in sample["metrics"]},
            responses=sample["filtered_resps"],
        )
        for sample in results["samples"][name]
    ]


def load(names: Sequence[str], folders: Sequence[Path]) -> dict[str, Task]:
    """The tasks behind some names, by task name, with the few-shot settings of lm-eval's command line.

    Args:
        names: tasks, groups or tags.
        folders: with local definitions, besides those shipped here.

    Raises:
        UserError: a task cannot be loaded, or would run code of its answers or need images.
    """
    tasks: dict[str, Task] = {}
    with filled([*shipped(), *folders]) as places:
        local = TaskManager(include_path=list(places), include_defaults=False)
        for name in names:
            manager = local if name in local.task_index else stock_tasks()
            try:
                with _seeds_of_lm_eval():
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
def stock_tasks() -> TaskManager:
    """lm-eval's own index: a quarter of a minute, so once."""
    return TaskManager()


def with_keys(tasks: Mapping[str, Task], limit: int, longest: int) -> dict[str, tuple[Task, str]]:
    """The tasks in the order of their names, each with a content key: its settings, its functions' code, the documents themselves.

    Args:
        tasks: from `load`.
        limit: first documents scored; 0 for all.
        longest: most tokens of a generated answer; 0 leaves it to the task.
    """
    keyed = {}
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
        content = json.dumps([settings, docs, shots, code], default=str, sort_keys=True)
        keyed[name] = (task, hashlib.sha256(content.encode()).hexdigest())
    return keyed


def _sources(task: Task) -> set[str]:
    """Files with the code that a task brings: of its class, and of functions in its settings."""
    brought = [type(task)] + [value for value in vars(task.config).values() if inspect.isfunction(value)]
    return {file for item in brought if (file := inspect.getsourcefile(item))}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While open, lm-eval and datasets log errors only and draw no progress bars, and a template is compiled once."""
    log, bars, tqdm = logging.getLogger("lm_eval"), not datasets.are_progress_bars_disabled(), lm_eval.api.task.tqdm
    level = log.level
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # The one bar of lm-eval that no argument turns off.
    lm_eval.api.task.tqdm = lambda items, **_: items
    templates = lm_eval.utils.env
    # lm-eval compiles the template of a task anew for every document.
    templates.from_string = lru_cache(maxsize=None)(templates.from_string)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        del templates.from_string
        lm_eval.api.task.tqdm = tqdm
        log.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _seeds_of_lm_eval() -> Iterator[None]:
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
