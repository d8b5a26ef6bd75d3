"""What an engineer runs for one grid point of a sweep without dpobench: a script that trains with TRL, and one that samples.

`python trl_scripts.py train FILE` and `python trl_scripts.py sample FILE`; FILE is JSON with the arguments of the function. Nothing of
dpobench is imported, so that its import costs this side no time.
"""

import json
import sys
from pathlib import Path


def train(
    model: str,
    pairs: str,
    target: str,
    *,
    configuration: dict[str, object],
    rates: list[float],
    weight_decay: float,
    log: str,
) -> None:
    """Train with TRL's DPOTrainer, save, and write its log.

    Args:
        model: folder of the start policy.
        pairs: file of preference pairs, in the order in which they are to be read.
        target: folder of the checkpoint.
        configuration: fields of its `DPOConfig`.
        rates: learning rate of each step.
        weight_decay: of AdamW.
        log: file of TRL's log.
    """
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    rows = load_dataset("json", data_files=pairs, split="train").select_columns(["prompt", "chosen", "rejected"])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1.0, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])
    trainer = DPOTrainer(
        model=policy,
        args=DPOConfig(output_dir=target, **configuration),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model),
        optimizers=(optimizer, schedule),
    )
    trainer.train()
    trainer.save_model(target)
    Path(log).write_text(json.dumps(trainer.state.log_history), encoding="utf-8")


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
    dialogues = [json.loads(line)["prompt"] for line in Path(prompts).read_text(encoding="utf-8").splitlines()] * draws
    texts = [tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in dialogues]
    answers: list[str] = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(texts[start : start + batch], return_tensors="pt", padding=True, add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        drawn = policy.generate(
            **inputs, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=max_new_tokens
        )
        answers += tokenizer.batch_decode(drawn[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    lines = [json.dumps({"prompt": one, "answer": answer}) for one, answer in zip(dialogues, answers, strict=True)]
    Path(target).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    (train if sys.argv[1] == "train" else sample)(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
