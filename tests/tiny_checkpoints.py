"""Tiny models, and checkpoints and held-out inputs made of them, in memory."""

import dataclasses
import string
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpobench import Checkpoint, HeldOut, Prompt

WORDS = list(string.ascii_lowercase)


def llama(vocabulary=11, seed=0, cls=LlamaForCausalLM, scale=0.6, **more):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": 0, "initializer_range": scale}
    return cls(LlamaConfig(**{**sizes, **settings, **more})).eval()


def checkpoint_of(policy, reference=None, tokenizer=None):
    """A checkpoint whose models are in memory; the reference itself where only one model is given."""
    checkpoint = Checkpoint(Path("policy"), Path("policy" if reference is None else "reference"))
    vars(checkpoint)["policy"] = policy
    vars(checkpoint)["reference"] = policy if reference is None else reference
    vars(checkpoint)["tokenizer"] = tokenizer
    return checkpoint


def samples_of(answers, end=0):
    """Samples from {prompt: [token ids of draw 0, of draw 1, ...]}; the text spells the ids."""
    rows = [
        {"prompt": prompt, "draw": draw, "text": " ".join(map(str, ids)), "token_ids": ids, "ended": ids[-1] == end}
        for prompt, draws in answers.items()
        for draw, ids in enumerate(draws)
    ]
    return pd.DataFrame(rows)


def held_out_of(samples, reference=None, prompts=None, **more):
    prompts = prompts or dict.fromkeys(samples["prompt"], (1, 2, 3))
    prompt_rows = [Prompt(key, ({"role": "user", "content": key},), tuple(ids)) for key, ids in prompts.items()]
    return HeldOut(prompt_rows, samples, samples if reference is None else reference, **more)


def with_chosen(held_out, chosen):
    prompts = [dataclasses.replace(p, chosen=chosen.get(p.id)) for p in held_out.prompts]
    return dataclasses.replace(held_out, prompts=prompts)


def values(frame, metric, group=None):
    """Values of a metric in the order of the rows."""
    wanted = frame["metric"] == metric
    if group is not None:
        wanted &= frame["group"] == group
    return frame.loc[wanted, "value"].tolist()


def tokenizer():
    """A tokenizer whose words are the letters."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<end>", "<unk>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unk>")
