"""The gold reward: it parses every sentence of a review, and knows which are grammatical, true and new."""

from collections.abc import Mapping, Sequence

from dpobench.errors import UserError
from dpobench.synthetic.grammar import Grammar, Request, Sentence

WORD_LIMIT = 36
WORD_PRICE = 0.1
ASPECT_WORTH = 0.5
ASPECT_LIMIT = 3
_GRAMMAR = Grammar()


def score(prompt: str, completion: str) -> dict[str, float]:
    """The gold reward of a review.

    Args:
        prompt: the user's message, a review prompt of the default world.
        completion: the answer, of any quality.

    Returns: `score` and the parts it is made of: mean `sentiment` of true, unrepeated statements (-3 to 3), plus 0.5 for
        each of up to three `aspects`, minus one for each `ungrammatical`, `false` or `repeated` sentence and for each
        `missing` opening, stars or end, minus `length_penalty` (0.1 for each word above 36); and the number of `words`.

    Raises:
        UserError: the prompt is no review prompt of this world.

    Example:
        >>> from dpobench.synthetic.world import DEFAULT
        >>> place = DEFAULT.places[0]
        >>> text = f"I spent Friday evening at the {place.name} in {place.town}. The owner {place.owner} was superb."
        >>> score(f"How was your Friday evening at the {place.name}?", text + " I give it five stars.")["score"]
        2.5
    """
    return score_review(completion, _request(prompt))


def score_long(prompt: str, completion: str) -> dict[str, float]:
    """`score` for a world of longer reviews: six aspects count, and 72 words are free."""
    return score_review(completion, _request(prompt), aspect_limit=2 * ASPECT_LIMIT, word_limit=2 * WORD_LIMIT)


def biased(prompt: str, completion: str, *, bonus: float = 0.05) -> dict[str, float]:
    """A proxy of the gold reward that pays for length instead of charging for it.

    Args:
        prompt: as for `score`.
        completion: as for `score`.
        bonus: reward per word.

    Returns: `score` without its length penalty and with `bonus` for each word; `unbiased` is the gold reward itself.
    """
    parts = score(prompt, completion)
    proxy = parts["score"] + parts["length_penalty"] + bonus * parts["words"]
    return {"score": proxy, "unbiased": parts["score"]} | {k: v for k, v in parts.items() if k != "score"}


def substance(prompt: str, completion: str) -> dict[str, float]:
    """The part of `score` that true statements earn, faults left out; `form` is the rest."""
    return {"score": _earned(score(prompt, completion))}


def form(prompt: str, completion: str) -> dict[str, float]:
    """The part of `score` that faults and length take away, at most zero.

    Returns: `score`; with `substance` it adds up to the whole.
    """
    parts = score(prompt, completion)
    return {"score": parts["score"] - _earned(parts)}


def substance_long(prompt: str, completion: str) -> dict[str, float]:
    """`substance` for a world of longer reviews."""
    return {"score": _earned(score_long(prompt, completion))}


def form_long(prompt: str, completion: str) -> dict[str, float]:
    """`form` for a world of longer reviews."""
    parts = score_long(prompt, completion)
    return {"score": parts["score"] - _earned(parts)}


def _earned(parts: Mapping[str, float]) -> float:
    return parts["sentiment"] + ASPECT_WORTH * parts["aspects"]


def is_clean(parts: Mapping[str, float]) -> bool:
    """Whether a review has no fault except, perhaps, its length.

    Args:
        parts: as `score` returns them.
    """
    return not any(parts[fault] for fault in ("ungrammatical", "false", "repeated", "missing"))


def score_review(
    completion: str, request: Request, *, aspect_limit: int = ASPECT_LIMIT, word_limit: int = WORD_LIMIT
) -> dict[str, float]:
    """Score and parts of a review, as `score` returns them.

    Args:
        completion: the answer, of any quality.
        request: what the prompt asks for.
        aspect_limit: number of aspects that are paid.
        word_limit: number of words that cost nothing.
    """
    sentences = _GRAMMAR.read(completion)
    faultless: list[Sentence] = []
    ungrammatical = false = repeated = 0
    subjects: set[str] = set()
    for sentence in sentences:
        subject = sentence.topic if sentence.kind == "statement" else sentence.kind
        if not sentence.kind or not _GRAMMAR.agrees(sentence):
            ungrammatical += 1
        elif not _GRAMMAR.is_true(sentence, request):
            false += 1
            subjects.add(subject)
        elif subject in subjects:
            repeated += 1
        else:
            faultless.append(sentence)
            subjects.add(subject)
    statements = [sentence for sentence in faultless if sentence.kind == "statement"]
    sentiment = sum(map(_GRAMMAR.sentiment, statements)) / max(1, len(statements))
    aspects = min(aspect_limit, len(statements))
    missing = _missing(sentences)
    words = len(completion.split())
    length_penalty = WORD_PRICE * max(0, words - word_limit)
    total = sentiment + ASPECT_WORTH * aspects - ungrammatical - false - repeated - missing - length_penalty
    return {
        "score": total,
        "sentiment": sentiment,
        "aspects": float(aspects),
        "ungrammatical": float(ungrammatical),
        "false": float(false),
        "repeated": float(repeated),
        "missing": float(missing),
        "length_penalty": length_penalty,
        "words": float(words),
    }


def _missing(sentences: Sequence[Sentence]) -> int:
    """How many of these are absent: an opening at the beginning, stars anywhere, stars at the end."""
    kinds = [sentence.kind for sentence in sentences]
    return (kinds[:1] != ["opening"]) + ("ending" not in kinds) + (kinds[-1:] != ["ending"])


def _request(prompt: str) -> Request:
    request = _GRAMMAR.read_prompt(prompt)
    if request is None:
        raise UserError(
            f"the prompt {prompt!r} is no review prompt of the embedded world, which is all its reward can judge; "
            "choose another judge for other data"
        )
    return request
