"""A small chat model from real text: byte-level tokenizer, Llama architecture, a short fine-tuning on instructions.

As a script: `python tests/small_model.py FOLDER SFT_FILE [STEPS]`.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tokenizer_from(texts, size=2048):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    roles = ["<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=[END, *roles], initial_alphabet=alphabet, show_progress=False
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, additional_special_tokens=roles
    )
    fast.chat_template = TEMPLATE
    return fast


def fine_tune(model, sequences, steps, batch=8, rate=2e-3, width=256):
    """Next-token training on whole dialogues, cut to `width` tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    draw = np.random.default_rng(0)
    for step in range(steps):
        rows = [sequences[i][:width] for i in draw.integers(len(sequences), size=batch)]
        ids = torch.full((batch, max(map(len, rows))), -100)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        model(input_ids=ids.clamp_min(0), attention_mask=(ids >= 0).long(), labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def build(folder: Path, sft: Path, steps: int = 150) -> Path:
    rows = json.loads(gzip.decompress(sft.read_bytes()))
    dialogues = [
        [
            {"role": "user", "content": f"{r['instruction']}\n{r['input']}".strip()},
            {"role": "assistant", "content": r["output"]},
        ]
        for r in rows
    ]
    tokenizer = tokenizer_from([turn["content"] for dialogue in dialogues for turn in dialogue])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=352, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    fine_tune(model, [tokenizer.apply_chat_template(d, return_dict=False) for d in dialogues], steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 150)
