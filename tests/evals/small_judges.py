"""Judges small enough for a test: a chat model and a reward model with random weights that read every text, byte by byte."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({token: place for place, token in enumerate([*SPECIAL, *alphabet])}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|end|>", pad_token="<|pad|>", additional_special_tokens=SPECIAL[2:]
    )
    made.chat_template = CHAT
    return made


def save_judge(folder, cls=LlamaForCausalLM, seed=0, tokenizer=None, **more):
    tokenizer = tokenizer or byte_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = {"max_position_embeddings": 4096, "initializer_range": 0.6, "bos_token_id": None, "pad_token_id": 1}
    torch.manual_seed(seed)
    config = LlamaConfig(**{**sizes, **settings, "vocab_size": len(tokenizer), "eos_token_id": 0, **more})
    cls(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_reward_model(folder, **more):
    return save_judge(folder, LlamaForSequenceClassification, **{"num_labels": 1, **more})
