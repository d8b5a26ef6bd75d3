"""The word-level tokenizer of the world, with a chat template, as any Hugging Face program reads it."""

import re
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dpobench.synthetic import lessons
from dpobench.synthetic.grammar import Grammar
from dpobench.synthetic.world import ASPECTS

PAD, UNKNOWN, BEGIN, END, USER, ASSISTANT = "<pad>", "<unk>", "<s>", "</s>", "<user>", "<assistant>"
# Spaces around the marks are for human readers: words are tokens, so no token depends on them.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant> {{ message['content'] }} {{ eos_token }}"
    "{% else %}<user> {{ message['content'] }} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


def render(question: str, answer: str = "") -> str:
    """The template's text of one question, up to where the assistant's answer begins, and the answer so far.

    Example:
        >>> render("What is one plus one?", "The answer is")
        '<s><user> What is one plus one? <assistant> The answer is'
    """
    return f"{BEGIN}{USER} {question} {ASSISTANT} {answer}".rstrip()


def words(text: str) -> list[str]:
    """The tokens of a text that holds no marks.

    Example:
        >>> words("The cake was good.")
        ['The', 'cake', 'was', 'good', '.']
    """
    return re.findall(r"\w+|[^\w\s]", text)


def vocabulary(grammar: Grammar) -> list[str]:
    """Every word that the grammar or a lesson can write, sorted."""
    lexicon = grammar.lexicon
    texts: list[str] = [*grammar.review_prompts(), *grammar.steered_prompts()]
    texts += [re.sub(r"{\w+}", "", pattern) for pattern in (*lexicon.openings, *lexicon.endings)]
    texts += [word for group in (*lexicon.adjectives.values(), *lexicon.verbs.values()) for word in group]
    texts += [noun for nouns in ASPECTS.values() for noun, _ in nouns]
    texts += [*lexicon.intensity, "The owner was were looked door I one star two three four five stars ."]
    for lesson in [*lessons.facts(grammar.world), *lessons.sequences(), *lessons.sums()]:
        texts += [lesson.question, lesson.text]
    return sorted({word for text in texts for word in words(text)})


def make_tokenizer(grammar: Grammar, max_length: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the world's words.

    Args:
        grammar: whose words.
        max_length: tokens that a model can read.

    Returns: the tokenizer; the template writes the begin token, so tokenising adds none.
    """
    tokens: Iterable[str] = [PAD, UNKNOWN, BEGIN, END, USER, ASSISTANT, *vocabulary(grammar)]
    core = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    # No token begins with the prefix: the decoder only joins words by spaces, without one before punctuation.
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
