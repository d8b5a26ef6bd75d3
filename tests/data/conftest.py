"""Small tokenizers, built on the spot: byte-level, so that every text can be written and read back."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def _byte_level(specials, *, prefix_space=False, adds_begin=False, **names):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["the answer is that the question was good"] * 3, trainer)
    if adds_begin:
        begin = names["bos_token"]
        raw.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, raw.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


@pytest.fixture(scope="session")
def byte_level():
    """Builds a tokenizer from its control tokens and their names."""
    return _byte_level


@pytest.fixture(scope="session")
def plain_tokenizer():
    """No begin token, no template, no pad."""
    return _byte_level(["<|end|>"], eos_token="<|end|>")


@pytest.fixture(scope="session")
def chat_tokenizer():
    """ChatML: its template writes a line break after the end token."""
    made = _byte_level(
        ["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    made.chat_template = CHATML
    return made


@pytest.fixture(scope="session")
def begin_tokenizer():
    """Puts <s> before every text, has no template."""
    return _byte_level(["<s>", "</s>"], adds_begin=True, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def twice_begin_tokenizer():
    """Puts <s> before every text, and its template writes one as well."""
    made = _byte_level(["<s>", "</s>"], adds_begin=True, bos_token="<s>", eos_token="</s>")
    made.chat_template = LLAMA_LIKE
    return made


@pytest.fixture(scope="session")
def spaced_tokenizer():
    """Invents a blank before every text, as many SentencePiece vocabularies do."""
    return _byte_level(["<|end|>"], prefix_space=True, eos_token="<|end|>")
