"""The tokenizer as any Hugging Face program sees it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dpobench.synthetic.base import Corpus
from dpobench.synthetic.grammar import Grammar
from dpobench.synthetic.lessons import facts, sequences, sums
from dpobench.synthetic.tokenizer import make_tokenizer, render

GRAMMAR = Grammar()
TOKENIZER = make_tokenizer(GRAMMAR, 128)
WORDS = range(6, len(TOKENIZER))


def dialogues() -> list[tuple[str, str]]:
    rng = random.Random(0)
    texts = [(lesson.question, lesson.text) for lesson in [*facts(GRAMMAR.world), *sequences(), *sums()]]
    for prompt in rng.sample(GRAMMAR.review_prompts(), 50) + rng.sample(GRAMMAR.steered_prompts(), 50):
        request = GRAMMAR.read_prompt(prompt)
        assert request is not None
        texts.append((prompt, GRAMMAR.write(request, rng)))
    return texts


def test_every_text_of_the_world_survives_the_round_trip_without_unknown_words() -> None:
    for text in {text for dialogue in dialogues() for text in dialogue}:
        ids = TOKENIZER(text)["input_ids"]
        assert TOKENIZER.unk_token_id not in ids
        assert TOKENIZER.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40))
def test_any_sequence_of_words_survives_decoding_and_encoding(ids: list[int]) -> None:
    assert TOKENIZER(TOKENIZER.decode(ids))["input_ids"] == ids


def test_the_template_puts_the_answer_after_the_prompt_and_ends_it() -> None:
    for question, answer in dialogues()[::17]:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        prompt = TOKENIZER.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
        whole = TOKENIZER.apply_chat_template(messages)["input_ids"]
        assert whole[: len(prompt)] == prompt
        assert prompt[0] == TOKENIZER.bos_token_id
        assert whole.count(TOKENIZER.bos_token_id) == 1
        assert whole[-1] == TOKENIZER.eos_token_id
        assert TOKENIZER.decode(whole[len(prompt) :], skip_special_tokens=True) == answer


def test_training_and_tasks_read_the_tokens_of_the_template() -> None:
    corpus = Corpus(GRAMMAR, TOKENIZER.get_vocab(), seed=0)
    for question, answer in dialogues()[::17]:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        whole = TOKENIZER.apply_chat_template(messages)["input_ids"]
        prompt = TOKENIZER.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
        assert corpus.encode(question, answer) == (whole, len(prompt))
        assert TOKENIZER(render(question))["input_ids"] == prompt
        assert TOKENIZER(render(question, answer))["input_ids"] == whole[:-1]


def test_a_saved_tokenizer_is_the_same(tmp_path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": GRAMMAR.review_prompts()[0]}]
    for tokenizer in (TOKENIZER, loaded):
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert text.startswith("<s><user> How was")
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == ("<pad>", "<s>", "</s>")


@pytest.mark.parametrize("word", ["xylophone", "How's"])
def test_a_strange_word_is_unknown(word: str) -> None:
    assert TOKENIZER.unk_token_id in TOKENIZER(word)["input_ids"]
