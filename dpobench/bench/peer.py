"""What an engineer runs for one cell of a sweep without dpobench: a script that trains with TRL, and one that samples.

`python peer.py train FILE` and `python peer.py sample FILE`, FILE being JSON with the arguments of the function. Nothing of dpobench
is imported, so that nothing of it is paid for.
"""

import json
import sys
from pathlib import Path
from typing import Any


def train(
    model: str, pairs: str, target: str, *, told: dict[str, Any], rates: list[float], weight_decay: float, log: str
) -> None:
    """Train with TRL's DPOTrainer, save, and write its log.

    Args:
        model: folder of the start policy.
        pairs: file of preference pairs, in the order in which they are to be read.
        target: folder of the checkpoint.
        told: fields of its configuration.
        rates: learning rate of each step.
        weight_decay: AdamW's.
        log: file of its log.
    """
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    rows = load_dataset("json", data_files=pairs, split="train").select_columns(["prompt", "chosen", "rejected"])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1.0, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])
    side = DPOTrainer(
        model=policy,
        args=DPOConfig(output_dir=target, **told),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model),
        optimizers=(optimizer, schedule),
    )
    side.train()
    side.save_model(target)
    Path(log).write_text(json.dumps(side.state.log_history), encoding="utf-8")


def sample(model: str, prompts: str, target: str, *, batch: int, draws: int, max_new_tokens: int) -> None:
    """Draw answers to a file of prompts, batch after batch.

    Args:
        model: folder of the checkpoint.
        prompts: file of prompts, one JSON object a line.
        target: file of the answers, one JSON object a line.
        batch: prompts answered at a time.
        draws: answers per prompt.
        max_new_tokens: where an answer is cut.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    asked = [json.loads(line)["prompt"] for line in Path(prompts).read_text(encoding="utf-8").splitlines()]
    texts = [tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in asked * draws]
    answers: list[str] = []
    for start in range(0, len(texts), batch):
        read = tokenizer(texts[start : start + batch], return_tensors="pt", padding=True, add_special_tokens=False)
        read.pop("token_type_ids", None)
        drawn = policy.generate(
            **read, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=max_new_tokens
        )
        answers += tokenizer.batch_decode(drawn[:, read["input_ids"].shape[1] :], skip_special_tokens=True)
    lines = [json.dumps({"prompt": one, "answer": answer}) for one, answer in zip(asked * draws, answers, strict=True)]
    Path(target).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    (train if sys.argv[1] == "train" else sample)(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
