"""How far the policy went from the reference, in nats: exact over the vocabulary at every sampled position.

Shapes in this module: K completion tokens of a padded batch, T completion tokens of one sequence, H hidden units.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from dpobench import Checkpoint, HeldOut, Metric, UserError, evaluator, score_rows
from dpobench.evaluation.heldout import OnPolicySamples
from dpobench.models.logprobs import Batch, Head, by_tokens, completion_hidden, within

Sequences: TypeAlias = Sequence[tuple[Sequence[int], Sequence[int]]]
"""Token ids of prompts and completions."""
Array: TypeAlias = npt.NDArray[np.float64]
# Numbers of the reference's hidden states that a process holds between checkpoints: 256 MB in float32.
MOST_CACHED = 2**26


@evaluator(
    metrics={
        "kl": Metric("nats per sequence", "none", "distance", "KL(policy || reference)"),
        "kl_per_token": Metric("nats per token", "none", label="KL per token"),
        "kl_k1": Metric("nats per sequence", "none", label="KL, log-ratio estimate"),
        "kl_forward": Metric("nats per sequence", "none", label="KL(reference || policy)"),
        "kl_position": Metric("nats per token", "none", label="KL by position"),
        "kl_noise_floor": Metric("nats per sequence", "none", label="KL of the reference to itself, batched otherwise"),
        "kl_truncated": Metric("share", "lower", label="answers cut before their end"),
    },
    needs=("on_policy",),
    within=True,
    at_reference={"kl": 0.0, "kl_per_token": 0.0, "kl_k1": 0.0, "kl_forward": 0.0, "kl_position": 0.0},
)
def kl(
    checkpoint: Checkpoint,
    held_out: HeldOut,
    *,
    chunk: int = 64,
    budget: int = 8192,
    bucket: int = 8,
    noise: int = 8,
) -> pd.DataFrame:
    r"""Rao-Blackwellised reverse KL on the checkpoint's samples.

    $\sum_t KL(\pi(\cdot | x, y_{<t}) \| \pi_{ref}(\cdot | x, y_{<t}))$ with $y \sim \pi$. The position that drew the end token
    counts, padding does not. Softmax in float32.

    Args:
        checkpoint: policy and reference.
        held_out: samples of both; where those to be compared are drawn otherwise, at another temperature say, its `on_policy` ones.
        chunk: tokens whose logits are held at a time; memory is about five times `chunk` x vocabulary x 4 bytes.
        budget: most tokens of a padded batch; on a CPU never more than its caches serve well.
        bucket: positions a group of `kl_position` spans.
        noise: sequences of the reference on which the noise floor is measured; 0 for none.

    Returns: one row per sample: `kl`, nats per sequence; `kl_per_token`, its mean over that sequence's tokens; `kl_k1`, the summed
        log-ratio of the sampled tokens, nats (the same expectation, a cross-check); `kl_position`, mean nats per token of a
        stretch of positions (group "0-7" and so on); `kl_truncated`, 1 where the answer was cut before its end. `kl_forward`, nats
        per sequence, on the reference's samples. All of these but `kl_truncated` are exactly 0 for the reference against
        itself. `kl_noise_floor`, nats per sequence on a few of the reference's samples: rounding where the truth is 0.

    Raises:
        UserError: no samples follow the models' own distributions, so that no estimate would mean anything; a chunk or bucket below 1.

    References: Amini, Vieira, Cotterell 2025, arXiv:2504.10637.
    """
    if chunk < 1 or bucket < 1 or noise < 0:
        raise UserError(f"kl: chunk = {chunk} and bucket = {bucket} must be 1 or more, noise = {noise} 0 or more")
    samples, reference_samples = _on_policy(held_out)
    policy, reference = Head(checkpoint.policy), Head(checkpoint.reference)
    if checkpoint.is_reference:
        reference = policy
    values = divergences(policy, reference, _sequences(samples, held_out), chunk, budget)
    drawn = _sequences(reference_samples, held_out)
    hidden = None
    size = reference.model.get_input_embeddings().weight.shape[1]
    if size * sum(len(completion) for _, completion in drawn) <= MOST_CACHED:
        # The same for every policy, so computed once.
        hidden = held_out.compute_once(("kl hidden", budget), lambda: hidden_states(reference, drawn, budget))
    forward = divergences(reference, policy, drawn, chunk, budget, hidden)
    few = drawn[:noise]
    floor = held_out.compute_once(("kl noise floor", noise, chunk), lambda: noise_floor(reference, few, chunk))

    def per_sample(metric: str, numbers: npt.ArrayLike, frame: pd.DataFrame = samples) -> pd.DataFrame:
        return score_rows(frame["prompt"].tolist(), metric, numbers, draws=frame["draw"].tolist())

    return pd.concat(
        [
            per_sample("kl", [v[:, 0].sum() for v in values]),
            per_sample("kl_per_token", [v[:, 0].mean() for v in values]),
            per_sample("kl_k1", [v[:, 1].sum() for v in values]),
            per_sample("kl_truncated", ~samples["ended"].to_numpy(dtype=bool)),
            per_sample("kl_forward", [v[:, 0].sum() for v in forward], reference_samples),
            per_sample("kl_noise_floor", floor, reference_samples.head(len(few))),
            *_profile(samples, values, bucket),
        ],
        ignore_index=True,
    )


def _on_policy(held_out: HeldOut) -> OnPolicySamples:
    """Samples of the policy and of the reference that follow their own distributions."""
    settings = held_out.sampling
    if settings.is_policy:
        return OnPolicySamples(held_out.samples, held_out.reference_samples)
    if held_out.on_policy is None:
        raise UserError(
            f"KL needs samples of the model's own distribution; these were drawn with temperature={settings.temperature:g}, "
            f"top_p={settings.top_p:g}, top_k={settings.top_k}. Draw with temperature=1, top_p=1, top_k=0, or leave kl out"
        )
    return held_out.on_policy


def _sequences(samples: pd.DataFrame, held_out: HeldOut) -> list[tuple[Sequence[int], Sequence[int]]]:
    prompts = held_out.prompts_by_id
    return [(prompts[key].token_ids, ids) for key, ids in zip(samples["prompt"], samples["token_ids"], strict=True)]


@torch.no_grad()
def divergences(
    policy: Head,
    reference: Head,
    sequences: Sequences,
    chunk: int,
    budget: int,
    hidden: Sequence[Tensor] | None = None,
) -> list[Array]:
    """Both estimators of the KL divergence at every completion token.

    Args:
        policy: whose samples these are.
        reference: the other model; the same object gives exact zeros.
        sequences: prompt and completion ids.
        chunk: tokens whose logits are held at a time.
        budget: most tokens of a padded batch.
        hidden: hidden states of the policy on the same sequences, from `hidden_states` with the same budget.

    Returns: for each sequence an array [T, 2], nats: KL over the vocabulary, and log-ratio of the token itself.
    """
    by_sequence: list[Array] = [np.empty((0, 2))] * len(sequences)
    for number, group in enumerate(_groups(policy, sequences, budget)):
        batch = Batch([sequences[i] for i in group], policy.model.device)
        state = completion_hidden(policy.model, batch) if hidden is None else hidden[number].to(batch.ids.device)
        other = state if reference is policy else completion_hidden(reference.model, batch)
        values = _in_chunks(policy, state, reference, other, batch.targets, chunk)
        for index, part in zip(group, torch.split(values, batch.mask.sum(1).tolist()), strict=True):
            by_sequence[index] = part.double().cpu().numpy()
    return by_sequence


def _groups(head: Head, sequences: Sequences, budget: int) -> list[list[int]]:
    """Indices of the sequences of each padded batch."""
    sizes = [len(prompt) + len(completion) for prompt, completion in sequences]
    return by_tokens(sizes, within(budget, head.model.device))


@torch.no_grad()
def hidden_states(head: Head, sequences: Sequences, budget: int) -> list[Tensor]:
    """Inputs of the head at every completion token, [K, H] for each padded batch, on the CPU.

    Args:
        head: of the model.
        sequences: prompt and completion ids.
        budget: most tokens of a padded batch.
    """
    batches = (Batch([sequences[i] for i in few], head.model.device) for few in _groups(head, sequences, budget))
    return [completion_hidden(head.model, batch).cpu() for batch in batches]


@torch.no_grad()
def noise_floor(reference: Head, sequences: Sequences, chunk: int) -> list[float]:
    """KL in nats of the reference on each sequence, computed in a batch with the others, to itself on that sequence alone.

    Args:
        reference: the model.
        sequences: prompt and completion ids, N of them.
        chunk: tokens whose logits are held at a time.

    Returns: N numbers, 0 but for rounding.
    """
    if not sequences:
        return []
    together, floor = Batch(sequences, reference.model.device), []
    hidden = completion_hidden(reference.model, together)
    for at, sequence in enumerate(sequences):
        alone = Batch([sequence], reference.model.device)
        other = completion_hidden(reference.model, alone)
        parts = _in_chunks(reference, hidden[together.rows == at], reference, other, alone.targets, chunk)
        floor.append(float(parts[:, 0].double().sum()))
    return floor


def _in_chunks(policy: Head, hidden: Tensor, reference: Head, other: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """KL over the vocabulary and log-ratio of the target at K positions, shape [K, 2]."""
    parts = []
    for start in range(0, len(targets), chunk):
        piece = slice(start, start + chunk)
        logp, logq = policy(hidden[piece]).log_softmax(-1), reference(other[piece]).log_softmax(-1)
        p, difference = logp.exp(), logp - logq
        # A token the policy cannot draw adds nothing, also where its log-probability is minus infinity.
        exact = torch.where(p > 0, p * difference, 0.0).sum(-1)
        parts.append(torch.stack([exact, difference.gather(1, targets[piece, None])[:, 0]], 1))
    return torch.cat(parts)


def _profile(samples: pd.DataFrame, values: Sequence[Array], bucket: int) -> list[pd.DataFrame]:
    """Mean KL per token of each stretch of positions, one table per stretch."""
    lengths = np.array([len(v) for v in values])
    tables = []
    for start in range(0, int(lengths.max(initial=0)), bucket):
        longer = np.flatnonzero(lengths > start)
        part, means = samples.iloc[longer], [values[i][start : start + bucket, 0].mean() for i in longer.tolist()]
        group = f"{start}-{start + bucket - 1}"
        tables.append(
            score_rows(part["prompt"].tolist(), "kl_position", means, draws=part["draw"].tolist(), group=group)
        )
    return tables
