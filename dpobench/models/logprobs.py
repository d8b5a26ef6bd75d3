"""Log-probabilities of completions under a model: the head at completion positions only, softmax in float32."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpobench.data.tokens import TokenPair
from dpobench.errors import DpobenchError
from dpobench.losses.quantities import Need
from dpobench.models.lm_head import Projection, in_chunks, token_logps

Sequences = Sequence[tuple[Any, Any]]
# Most tokens of a pass on a CPU: larger ones leave its caches and are slower.
CPU_TOKENS = 1536


def within(budget: int, device: torch.device) -> int:
    """Most tokens of a pass on a device, of those that a budget allows."""
    return min(budget, CPU_TOKENS) if device.type == "cpu" else budget


def tensor(values: Any, device: torch.device | str) -> Tensor:
    """A numpy array on a device."""
    return torch.from_numpy(values).to(device)


class Laid:
    """Completions laid out for a model: where each of their tokens is predicted.

    Args:
        rows: row of each completion token, shape [K].
        positions: position whose output predicts it, shape [K].
        targets: its id, shape [K].
        lengths: tokens of each of the N completions; they sum to K.
        device: where the tensors live.

    Attributes:
        mask: true where `scatter` puts a value, shape [N, T].
    """

    def __init__(self, rows: Any, positions: Any, targets: Any, lengths: Sequence[int], device: Any) -> None:
        ends = np.asarray(lengths)[:, None]
        self.rows: Int[Tensor, " K"] = tensor(rows, device)
        self.positions: Int[Tensor, " K"] = tensor(positions, device)
        self.targets: Int[Tensor, " K"] = tensor(targets, device)
        self.mask: Bool[Tensor, "N T"] = tensor(np.arange(ends.max()) < ends, device)

    def scatter(self, values: Float[Tensor, " K"]) -> Float[Tensor, "N T"]:
        """Lay one value per completion token out as rows, zero elsewhere; differentiable."""
        return torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device).masked_scatter(self.mask, values)

    def inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward pass."""
        raise NotImplementedError


class Batch(Laid):
    """Prompts and completions as one right-padded block.

    Args:
        sequences: N pairs of prompt ids and completion ids.
        device: where the tensors live.

    Attributes:
        ids: token ids, shape [N, S].
        attention: true at tokens, shape [N, S].
    """

    def __init__(self, sequences: Sequences, device: torch.device | str = "cpu") -> None:
        lengths = np.array([[len(prompt), len(completion)] for prompt, completion in sequences])
        if (lengths < 1).any():
            raise DpobenchError("a prompt or a completion has no tokens; nothing could be predicted from or of it")
        ids = np.zeros((len(sequences), int(lengths.sum(1).max())), dtype=np.int64)
        for row, (prompt, completion) in enumerate(sequences):
            ids[row, : len(prompt)] = prompt
            ids[row, len(prompt) : len(prompt) + len(completion)] = completion
        ends = lengths.sum(1)
        steps = np.arange(ids.shape[1])
        rows, positions = ((steps >= lengths[:, :1] - 1) & (steps < ends[:, None] - 1)).nonzero()
        super().__init__(rows, positions, ids[rows, positions + 1], lengths[:, 1].tolist(), device)
        self.ids: Int[Tensor, "N S"] = tensor(ids, device)
        self.attention: Bool[Tensor, "N S"] = tensor(steps < ends[:, None], device)

    def inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward pass."""
        return {"input_ids": self.ids, "attention_mask": self.attention.long(), "use_cache": False}


@contextlib.contextmanager
def _before_head(model: Any, change: Callable[[Tensor], Tensor]) -> Iterator[Any]:
    """While open, the model's head is given `change` of what the model computed for it. Yields the head."""
    head = getattr(model, "module", model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, arguments: (change(arguments[0]), *arguments[1:]))
    try:
        yield head
    finally:
        handle.remove()


def completion_hidden(model: Any, batch: Laid) -> Float[Tensor, "K H"]:
    """What `Head` turns into the logits of completion tokens; computing it costs no row of the vocabulary but one."""
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        seen.append(hidden[batch.rows, batch.positions])
        return hidden[:1, :1]

    with _before_head(model, keep):
        model(**batch.inputs())
    return seen[0]


class Head:
    """Hidden states to logits, a few tokens at a time, as the model itself would: with its scaling and its soft cap.

    The configuration tells most architectures' scaling and cap. Whether that is all is asked of the model at the first use, on
    hidden states up to 64 times as large as usual, where a forgotten cap shows; where the answers differ, the model's own
    forward pass, of one token whose hidden state is replaced, does it from then on. That is right for every architecture and
    costs one token's pass a call.

    Args:
        model: a causal language model, unwrapped.
    """

    def __init__(self, model: Any) -> None:
        # A table of heads by model must not keep its models alive.
        self._model = weakref.ref(model)
        self._direct: bool | None = None

    @property
    def model(self) -> Any:
        """The model."""
        return self._model()

    @property
    def weight(self) -> Float[Tensor, "V H"]:
        """The matrix that turns hidden states into logits."""
        found: Tensor = self.model.get_output_embeddings().weight
        return found

    def __call__(self, hidden: Float[Tensor, "C H"]) -> Float[Tensor, "C V"]:
        """Logits in float32 (float64 for a float64 model)."""
        logits = self._configured(hidden) if self._is_direct(hidden) else self._through_model(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    def logps(self, hidden: Float[Tensor, "K H"], targets: Int[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Log-probability of each target, nats; the table over the vocabulary never exists whole if it is large."""
        if self._is_direct(hidden) and _is_plain(layer := self.model.get_output_embeddings()):
            return token_logps(hidden, Projection(layer.weight, layer.bias, *self._shape()), targets)

        def compute(table: Tensor, wanted: Tensor) -> list[Tensor]:
            return [table.gather(-1, wanted[:, None]).squeeze(-1)]

        return self.values(compute, hidden, targets)[0]

    def values(
        self, compute: Callable[..., Sequence[Tensor]], hidden: Float[Tensor, "K H"], *rows: Tensor
    ) -> list[Tensor]:
        """Any function of the log-probabilities over the vocabulary, whose table never exists whole if it is large.

        Args:
            compute: takes log-probabilities of some tokens, shape [C, V], and their part of `rows`; returns values per token.
            hidden: what the model computed for its head.
            rows: further inputs with K rows each.

        Returns: the values, K rows each.
        """
        return in_chunks(lambda part, *others: compute(self(part).log_softmax(-1), *others), self.weight, hidden, *rows)

    def _shape(self) -> tuple[float, float | None]:
        """Factor and cap of the logits, as the configuration tells them."""
        config = self.model.config.get_text_config()
        factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return factor, getattr(config, "final_logit_softcapping", None)

    def _configured(self, hidden: Tensor) -> Tensor:
        factor, cap = self._shape()
        logits = self.model.get_output_embeddings()(hidden)
        logits = logits if factor == 1.0 else logits * factor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _through_model(self, hidden: Tensor) -> Tensor:
        token = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
        with _before_head(self.model, lambda _: hidden.unsqueeze(0)):
            return self.model(input_ids=token, use_cache=False).logits[0]

    def _is_direct(self, hidden: Tensor) -> bool:
        """Whether the configuration tells all, found out once."""
        if self._direct is None:
            kind = hidden.device.type
            # Weights that autocast narrowed without a gradient must not stay in its cache for the step.
            uncached = torch.autocast(
                kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False
            )
            with torch.no_grad(), uncached:
                probe = torch.cat([hidden[:4] * factor for factor in (1, 8, 64)])
                own, ours = self._through_model(probe), self._configured(probe)
            # A model that was made ready for bf16 turns its logits into float32 after it computed them.
            close = 32 * max(torch.finfo(own.dtype).eps, torch.finfo(ours.dtype).eps)
            own, ours = own.double(), ours.double()
            self._direct = bool(torch.allclose(own, ours, rtol=close, atol=close * float(own.abs().max())))
        return self._direct


def _is_plain(layer: Any) -> bool:
    """Whether a layer is a product with its matrix and nothing else."""
    return type(layer) is torch.nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks


_HEADS: "WeakKeyDictionary[Any, Head]" = WeakKeyDictionary()


def head_of(model: Any) -> Head:
    """The head of a model, asked once how it is configured."""
    inner = getattr(model, "module", model)
    if inner not in _HEADS:
        _HEADS[inner] = Head(inner)
    return _HEADS[inner]


def completion_logps(model: Any, batch: Laid) -> Float[Tensor, "N T"]:
    """Log-probability of every completion token, nats, float32 (float64 for a float64 model); zero where `batch.mask` is false."""
    return batch.scatter(head_of(model).logps(completion_hidden(model, batch), batch.targets))


def completion_values(
    model: Any, batch: Laid, asked: Sequence[tuple[Need, Mapping[str, float]]], reference: Any = None
) -> dict[str, Float[Tensor, "N T"]]:
    """Log-probability of every completion token, and what else a loss asked of its next-token distribution.

    Args:
        model: the policy.
        batch: what it reads.
        asked: quantities that need the policy's distribution, each with the hyper-parameters it takes.
        reference: a live reference, where a quantity is computed from both distributions.

    Returns: "logp" and the quantities by name; nats, zero where `batch.mask` is false.
    """
    if not asked:
        return {"logp": completion_logps(model, batch)}
    hidden, rows = completion_hidden(model, batch), [batch.targets]
    if any(need.source == "both" for need, _ in asked):
        with torch.no_grad():
            rows.append(completion_hidden(reference, batch))

    def compute(policy: Tensor, targets: Tensor, base: Tensor | None = None) -> list[Tensor]:
        other = None
        if base is not None:
            with torch.no_grad():
                other = head_of(reference)(base).log_softmax(-1)
        found = [policy.gather(-1, targets[:, None]).squeeze(-1)]
        for need, options in asked:
            assert need.compute is not None
            with torch.set_grad_enabled(need.differentiable and torch.is_grad_enabled()):
                table = policy if need.differentiable else policy.detach()
                found.append(need.compute(table, other, targets, **options))
        return found

    names = ["logp", *(need.name for need, _ in asked)]
    values = head_of(model).values(compute, hidden, *rows)
    return {name: batch.scatter(value) for name, value in zip(names, values, strict=True)}


@torch.no_grad()
def completion_quantity(model: Any, batch: Laid, need: Need) -> Float[Tensor, "N T"]:
    """What a loss asked of the reference's next-token distribution alone, at every completion token."""

    def compute(table: Tensor, targets: Tensor) -> list[Tensor]:
        assert need.compute is not None
        return [need.compute(None, table, targets)]

    return batch.scatter(head_of(model).values(compute, completion_hidden(model, batch), batch.targets)[0])


def pair_batch(pairs: Sequence[TokenPair], device: torch.device | str = "cpu", *, gold: bool = False) -> Batch:
    """The chosen sides of B pairs, then their rejected sides; with `gold`, then the gold answers."""
    sides = [[pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    if gold:
        sides.append([pair.gold for pair in pairs if pair.gold is not None])
    return Batch([(pair.prompt, ids) for side in sides for pair, ids in zip(pairs, side, strict=True)], device)


def by_tokens(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices so that a padded group stays within a token budget; equal lengths meet, so little is padding.

    Args:
        sizes: tokens of each item.
        budget: most tokens of a group, padding counted; a larger item stands alone.

    Returns: groups of indices, longest first, deterministic for given sizes.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if groups and (len(groups[-1]) + 1) * sizes[groups[-1][0]] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def score_sequences(model: Any, sequences: Sequences, budget: int = 8192) -> list[np.ndarray]:
    """Log-probability of every completion token, nats.

    Returns: one float32 array per sequence, of the completion's length.
    """
    return per_sequence(model, sequences, lambda batch: completion_logps(model, batch), budget)


@torch.no_grad()
def per_sequence(
    model: Any, sequences: Sequences, compute: Callable[[Batch], Float[Tensor, "N T"]], budget: int = 8192
) -> list[np.ndarray]:
    """Values of completion tokens, computed in passes within a token budget.

    Returns: one float32 array per sequence, of the completion's length.
    """
    scored: list[np.ndarray] = [np.empty(0, np.float32)] * len(sequences)
    for group in by_tokens([len(p) + len(c) for p, c in sequences], within(budget, model.device)):
        batch = Batch([sequences[i] for i in group], model.device)
        values, mask = compute(batch).float().cpu().numpy(), batch.mask.cpu().numpy()
        for row, index in enumerate(group):
            scored[index] = values[row][mask[row]]
    return scored
