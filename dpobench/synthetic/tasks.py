"""Held-out tasks of the world, as lm-eval reads them: YAML and JSON lines, local files only."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dpobench.artifacts.files import write_bytes
from dpobench.synthetic.abilities import DESCRIPTIONS, OPTIONS
from dpobench.synthetic.grammar import OWNER, STARS, TONES, Grammar, Request
from dpobench.synthetic.lessons import Lesson, facts, sequences, sums
from dpobench.synthetic.preferences import lines
from dpobench.synthetic.tokenizer import END, render
from dpobench.synthetic.world import ASPECTS

_SIZE = 96
_YAML = """\
task: {name}
custom_dataset: !function documents.{name}
output_type: {output}
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{{target}}}}}"
{choices}target_delimiter: " "
num_fewshot: 0
{metrics}metadata:
  version: 1.0
  chance: {chance}
  description: {description}
"""
_ACCURACY = """\
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
_LOSS = """\
process_results: !function documents.review_loss
metric_list:
  - metric: loss
    aggregation: mean
    higher_is_better: false
  - metric: excess
    aggregation: mean
    higher_is_better: false
"""
# A data file that YAML names is searched in the working folder; a function reads it from the folder of its module.
_CODE = '''\
"""Documents and metric of the tasks in this folder."""

from pathlib import Path

from datasets import Dataset, DatasetDict


def _read(name):
    return DatasetDict({{"test": Dataset.from_json(str(Path(__file__).with_name(name + ".jsonl")), keep_in_memory=True)}})


{readers}


def review_loss(doc, results):
    """Loss of a review in nats, and what it exceeds the exact loss of the grammar that wrote it by."""
    ((log_probability, _),) = results
    return {{"loss": -log_probability, "excess": -log_probability - doc["floor"]}}
'''
_READER = """\
def {name}(**_):
    return _read("{name}")"""
# What a task asks: text, choices and index of the right one; or text, target and the grammar's exact loss of it, nats.
Document = Mapping[str, str | int | float | list[str]]


def write_tasks(
    folder: Path, grammar: Grammar, reviews: Sequence[tuple[str, str]], prompts: Sequence[str], seed: int
) -> None:
    """Write all tasks.

    Args:
        folder: for all files; lm-eval takes it as `include_path`.
        grammar: writes the documents.
        reviews: held-out prompts with a review each.
        prompts: held-out prompts for the other tasks.
        seed: of the draws: options, their order, words.
    """
    rng = random.Random(f"tasks:{seed}")
    documents = {
        "facts": _sample([_question(lesson, rng) for lesson in facts(grammar.world)], rng),
        "sequences": [_question(lesson, rng) for lesson in sequences()],
        "sums": [_question(lesson, rng) for lesson in sums()],
        "grammar": list(_minimal_pairs(grammar, prompts, rng)),
        "steering": list(_steering(grammar, rng)),
        "stars": list(_stars(grammar, prompts, rng)),
        "reviews": list(_reviews(grammar, reviews)),
    }
    for name, rows in documents.items():
        _write_task(folder, name, rows)
    readers = "\n\n\n".join(_READER.format(name=name) for name in documents)
    write_bytes(folder / "documents.py", _CODE.format(readers=readers).encode())


def _write_task(folder: Path, name: str, rows: Sequence[Document]) -> None:
    chance, description = DESCRIPTIONS[name]
    choices = chance is not None
    text = _YAML.format(
        name=name,
        output="multiple_choice" if choices else "loglikelihood",
        target="label" if choices else "target",
        choices="doc_to_choice: choices\n" if choices else "",
        metrics=_ACCURACY if choices else _LOSS,
        chance="null" if chance is None else chance,
        description=description,
    )
    write_bytes(folder / f"{name}.yaml", text.encode())
    write_bytes(folder / f"{name}.jsonl", lines(rows).encode())


def _document(question: str, answer: str, choices: Sequence[str], right: str, rng: random.Random) -> Document:
    order = rng.sample(list(choices), len(choices))
    return {"text": render(question, answer), "choices": order, "label": order.index(right)}


def _question(lesson: Lesson, rng: random.Random) -> Document:
    wrong = rng.sample([option for option in lesson.options if option != lesson.right], OPTIONS - 1)
    before, after = lesson.answer.split("{}")
    choices = [option + after for option in (lesson.right, *wrong)]
    return _document(lesson.question, before.strip(), choices, choices[0], rng)


def _sample(documents: Sequence[Document], rng: random.Random) -> list[Document]:
    return rng.sample(list(documents), min(_SIZE, len(documents)))


def _requests(grammar: Grammar, prompts: Sequence[str]) -> Iterator[tuple[str, Request]]:
    for prompt in prompts[:_SIZE]:
        request = grammar.read_prompt(prompt)
        assert request is not None
        yield prompt, request


def _opening(grammar: Grammar, request: Request) -> str:
    return request.fill(next(iter(grammar.lexicon.openings)))


def _minimal_pairs(grammar: Grammar, prompts: Sequence[str], rng: random.Random) -> Iterator[Document]:
    """Wrong number of the verb, wrong order of the words, or a word left out."""
    for index, (prompt, request) in enumerate(_requests(grammar, prompts)):
        noun, plural = rng.choice(ASPECTS[request.place.kind])
        adjective = rng.choice(grammar.lexicon.adjectives[rng.choice((-2, -1, 1, 2))])
        be, other = ("were", "was") if plural else ("was", "were")
        right = f"The {noun} {be} {adjective}."
        wrong = (f"The {noun} {other} {adjective}.", f"The {be} {noun} {adjective}.", f"The {noun} {adjective}.")
        yield _document(prompt, _opening(grammar, request), (right, wrong[index % 3]), right, rng)


def _steering(grammar: Grammar, rng: random.Random) -> Iterator[Document]:
    for prompt in rng.sample(grammar.steered_prompts(), _SIZE):
        request = grammar.read_prompt(prompt)
        assert request is not None
        attitude = rng.choice((-2, 2))
        noun, plural = rng.choice(ASPECTS[request.place.kind])
        statements = [
            f"The {noun} {'were' if plural else 'was'} {rng.choice(grammar.lexicon.adjectives[level])}."
            for level in (attitude, -attitude)
        ]
        right = statements[0] if attitude in TONES[request.tone] else statements[1]
        yield _document(prompt, _opening(grammar, request), statements, right, rng)


def _stars(grammar: Grammar, prompts: Sequence[str], rng: random.Random) -> Iterator[Document]:
    for prompt, request in _requests(grammar, prompts):
        attitude = rng.choice((-2, 2))
        topics = [*rng.sample([noun for noun, _ in ASPECTS[request.place.kind]], 2), OWNER]
        statements = []
        for topic in topics:
            sentence = grammar.statement(request.place, topic, attitude, rng)
            while grammar.sentiment(grammar.read(sentence)[0]) * attitude <= 0:
                sentence = grammar.statement(request.place, topic, attitude, rng)
            statements.append(sentence)
        choices = [f"{STARS[number]}." for number in (0, 4)]
        unfinished = " ".join([_opening(grammar, request), *statements, "I give it"])
        yield _document(prompt, unfinished, choices, choices[attitude > 0], rng)


def _reviews(grammar: Grammar, reviews: Sequence[tuple[str, str]]) -> Iterator[Document]:
    for prompt, review in reviews:
        request = grammar.read_prompt(prompt)
        assert request is not None
        # The end token is part of target and floor: a model that does not end its answers has a higher loss.
        yield {
            "text": render(prompt),
            "target": f"{review} {END}",
            "floor": -grammar.log_probability(request, review),
        }
