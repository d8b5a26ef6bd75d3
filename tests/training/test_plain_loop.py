"""A whole training against the shortest loop that does the same: whole logits, torch's clipping, torch's AdamW."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dpobench.training.accelerate import accelerator_for
from dpobench.training.order import batch_at
from dpobench.training.train import train
from tests.training import tiny

STEPS, BATCH, PEAK, BETA, DECAY = 6, 4, 1e-2, 0.3, 0.1
# One of six steps rises, five fall: by hand from the linear schedule.
RATES = [1.0, 1.0, 0.8, 0.6, 0.4, 0.2]


def logp(model, prompt, answer):
    ids = torch.tensor(np.concatenate([prompt, answer]))
    table = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return table[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).sum()


def plain_loop(pairs, clip):
    """Returns: final weights, norms before clipping, losses."""
    model, norms, losses = tiny.llama().eval(), [], []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
    for step in range(STEPS):
        each = []
        for row in [pairs[i] for i in batch_at(step, BATCH, len(pairs), seed=0)]:
            chosen = logp(model, row.prompt, row.chosen) - float(row.chosen_reference.sum())
            rejected = logp(model, row.prompt, row.rejected) - float(row.rejected_reference.sum())
            each.append(-torch.nn.functional.logsigmoid(BETA * (chosen - rejected)))
        loss = torch.stack(each).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        losses.append(loss.item())
        for group in optimizer.param_groups:
            group["lr"] = PEAK * RATES[step]
        optimizer.step()
    return model.state_dict(), norms, losses


@pytest.mark.parametrize("clip", [1e9, 0.7])
def test_a_training_is_what_the_plain_loop_does(clip, start, pairs, tmp_path):
    wanted, norms, losses = plain_loop(pairs, clip)
    bound = tiny.losses().get("dpo").bind(beta=BETA)
    run = tiny.run_of(bound, rate=PEAK, weight_decay=DECAY, clip=clip, warmup=0.1)
    train(run, bound, pairs, start, tmp_path, accelerator=accelerator_for("cpu", "float32"))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in log] == pytest.approx([PEAK * rate for rate in RATES])
    assert [row["gradient_norm"] for row in log] == pytest.approx(norms, rel=1e-4)
    assert [row["loss"] for row in log] == pytest.approx(losses, rel=1e-4, abs=1e-6)
    trained = load_file(tmp_path / "checkpoint" / "model.safetensors")
    before = load_file(start / "model.safetensors")
    moved = tiny.flat(wanted[name] - before[name] for name in before)
    assert float(tiny.flat(trained[name] - wanted[name] for name in before).norm() / moved.norm()) <= 2e-5


def test_clipping_changes_the_training_that_is_compared(pairs):
    """Adam forgives a common factor; the norms differ enough between steps for clipping to show."""
    loose, tight = plain_loop(pairs, 1e9), plain_loop(pairs, 0.7)
    assert max(loose[1]) > 2 * min(loose[1])
    assert max(loose[1]) > 0.7
    assert tiny.apart(tiny.flat(tight[0].values()), tiny.flat(loose[0].values())) > 1e-3
