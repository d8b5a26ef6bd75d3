"""Log-probabilities of completions under a model: the head at completion positions only, softmax in float32.

Shapes in this module: N sequences of S tokens, K completion tokens in all of them, T in the longest completion, C in a chunk, H the
width of hidden states, V the vocabulary.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dpobench.data.tokens import TokenPair
from dpobench.errors import DpobenchError
from dpobench.losses.quantities import Need
from dpobench.models.lm_head import Projection, in_chunks, token_logps
from dpobench.models.protocols import CausalLM, ForwardInputs, LanguageModel, unwrapped

# Token ids of a sequence: an array or a plain list.
Ids = Sequence[int] | npt.NDArray[np.int64]
# Prompt and completion of each sequence.
Sequences = Sequence[tuple[Ids, Ids]]
Device = torch.device | str
# Most tokens of a pass on a CPU: larger passes leave its caches and are slower.
CPU_TOKENS = 1536


def within(budget: int, device: torch.device) -> int:
    """Most tokens of a pass on a device, of those that a budget allows."""
    return min(budget, CPU_TOKENS) if device.type == "cpu" else budget


def tensor(values: npt.NDArray[np.generic], device: Device) -> Tensor:
    """A numpy array on a device."""
    return torch.from_numpy(values).to(device)


class CompletionLayout:
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

    def __init__(
        self,
        rows: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
        lengths: Sequence[int],
        device: Device,
    ) -> None:
        ends = np.asarray(lengths)[:, None]
        self.rows: Int[Tensor, " K"] = tensor(rows, device)
        self.positions: Int[Tensor, " K"] = tensor(positions, device)
        self.targets: Int[Tensor, " K"] = tensor(targets, device)
        self.mask: Bool[Tensor, "N T"] = tensor(np.arange(ends.max()) < ends, device)

    def scatter(self, values: Float[Tensor, " K"]) -> Float[Tensor, "N T"]:
        """Lay one value per completion token out as rows, zero elsewhere; differentiable."""
        return torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device).masked_scatter(self.mask, values)

    def inputs(self) -> ForwardInputs:
        """Arguments of the model's forward pass."""
        raise NotImplementedError


class Batch(CompletionLayout):
    """Prompts and completions as one right-padded block.

    Args:
        sequences: N pairs of prompt ids and completion ids.
        device: where the tensors live.

    Attributes:
        ids: token ids, shape [N, S].
        attention: true at tokens, shape [N, S].

    Raises:
        DpobenchError: a prompt or a completion has no tokens.

    Example:
        >>> batch = Batch([([5, 6, 7], [8, 1]), ([9], [10, 11, 1])])
        >>> batch.ids.tolist()
        [[5, 6, 7, 8, 1], [9, 10, 11, 1, 0]]
        >>> batch.positions.tolist()  # the prompt's last token predicts the first token of the completion
        [2, 3, 0, 1, 2]
        >>> batch.mask.tolist()
        [[True, True, False], [True, True, True]]
    """

    def __init__(self, sequences: Sequences, device: Device = "cpu") -> None:
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

    def inputs(self) -> ForwardInputs:
        """Arguments of the model's forward pass."""
        return {"input_ids": self.ids, "attention_mask": self.attention.long(), "use_cache": False}


@contextlib.contextmanager
def _before_head(model: LanguageModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the model's head is given `change` of the hidden states that the model computed for it."""
    head = unwrapped(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, arguments: (change(arguments[0]), *arguments[1:]))
    try:
        yield
    finally:
        handle.remove()


def completion_hidden(model: LanguageModel, batch: CompletionLayout) -> Float[Tensor, "K H"]:
    """Hidden states that `Head` turns into the logits of completion tokens.

    The forward pass computes the logits of a single token: its table over the vocabulary would be most of the work.
    """
    hidden_states: list[Tensor] = []

    def keep_completions(hidden: Tensor) -> Tensor:
        hidden_states.append(hidden[batch.rows, batch.positions])
        return hidden[:1, :1]

    with _before_head(model, keep_completions):
        model(**batch.inputs())
    return hidden_states[0]


class Head:
    """Hidden states to logits, a few tokens at a time, as the model itself would: with its scaling and its soft cap.

    The configuration states most architectures' scaling and cap. Whether that is all is tested against the model at the first use, on
    hidden states up to 64 times as large as usual, where a forgotten cap shows; where the answers differ, the model's own
    forward pass, of one token whose hidden state is replaced, does it from then on. That is right for every architecture and
    costs one token's pass a call.

    Args:
        model: a causal language model, unwrapped.
    """

    def __init__(self, model: CausalLM) -> None:
        # A table of heads by model must not keep its models alive.
        self._model = weakref.ref(model)
        self._direct: bool | None = None

    @property
    def model(self) -> CausalLM:
        """The model; it must still be alive."""
        model = self._model()
        assert model is not None
        return model

    @property
    def weight(self) -> Float[Tensor, "V H"]:
        """The matrix that turns hidden states into logits."""
        return self.model.get_output_embeddings().weight

    def __call__(self, hidden: Float[Tensor, "C H"]) -> Float[Tensor, "C V"]:
        """Logits in float32 (float64 for a float64 model)."""
        logits = self._configured(hidden) if self._is_direct(hidden) else self._through_model(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    def logps(self, hidden: Float[Tensor, "K H"], targets: Int[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Log-probability of each target, nats; the table over the vocabulary never exists whole if it is large."""
        if self._is_direct(hidden) and _is_plain(layer := self.model.get_output_embeddings()):
            return token_logps(hidden, Projection(layer.weight, layer.bias, *self._scale_and_cap()), targets)

        def compute(table: Tensor, rows: Tensor) -> list[Tensor]:
            return [table.gather(-1, rows[:, None]).squeeze(-1)]

        return self.values(compute, hidden, targets)[0]

    def values(
        self, compute: Callable[..., Sequence[Tensor]], hidden: Float[Tensor, "K H"], *rows: Tensor
    ) -> list[Tensor]:
        """Any function of the log-probabilities over the vocabulary, whose table never exists whole if it is large.

        Args:
            compute: takes log-probabilities of some tokens, shape [C, V], and their part of `rows`; returns values per token.
            hidden: what the model computed for its head, shape [K, H].
            rows: further inputs with K rows each.

        Returns: the values, K rows each.
        """
        return in_chunks(lambda part, *others: compute(self(part).log_softmax(-1), *others), self.weight, hidden, *rows)

    def _scale_and_cap(self) -> tuple[float, float | None]:
        """Factor and cap of the logits, as the configuration states them."""
        config = self.model.config.get_text_config()
        factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return factor, getattr(config, "final_logit_softcapping", None)

    def _configured(self, hidden: Float[Tensor, "C H"]) -> Float[Tensor, "C V"]:
        factor, cap = self._scale_and_cap()
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        logits = logits if factor == 1.0 else logits * factor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _through_model(self, hidden: Float[Tensor, "C H"]) -> Float[Tensor, "C V"]:
        token = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
        with _before_head(self.model, lambda _: hidden.unsqueeze(0)):
            return self.model(input_ids=token, use_cache=False).logits[0]

    def _is_direct(self, hidden: Float[Tensor, "C H"]) -> bool:
        """Whether matrix, scaling and cap of the configuration give the model's logits; tested once."""
        if self._direct is None:
            kind = hidden.device.type
            # Weights that autocast narrowed without a gradient must not stay in its cache for the step.
            uncached = torch.autocast(
                kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False
            )
            with torch.no_grad(), uncached:
                probe = torch.cat([hidden[:4] * factor for factor in (1, 8, 64)])
                exact, configured = self._through_model(probe), self._configured(probe)
            # A model that was made ready for bf16 turns its logits into float32 after it computed them.
            slack = 32 * max(torch.finfo(exact.dtype).eps, torch.finfo(configured.dtype).eps)
            exact, configured = exact.double(), configured.double()
            self._direct = bool(torch.allclose(exact, configured, rtol=slack, atol=slack * float(exact.abs().max())))
        return self._direct


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a product with its matrix and nothing else."""
    return type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks


_HEADS: WeakKeyDictionary[CausalLM, Head] = WeakKeyDictionary()


def head_of(model: LanguageModel) -> Head:
    """The head of a model; one per model, so that its configuration is tested once."""
    bare = unwrapped(model)
    if bare not in _HEADS:
        _HEADS[bare] = Head(bare)
    return _HEADS[bare]


def completion_logps(model: LanguageModel, batch: CompletionLayout) -> Float[Tensor, "N T"]:
    """Log-probability of every completion token.

    Returns: nats, shape [N, T], float32 (float64 for a float64 model); zero where `batch.mask` is false.
    """
    return batch.scatter(head_of(model).logps(completion_hidden(model, batch), batch.targets))


def completion_values(
    model: LanguageModel,
    batch: CompletionLayout,
    needs: Sequence[tuple[Need, Mapping[str, float]]],
    reference: LanguageModel | None = None,
) -> dict[str, Float[Tensor, "N T"]]:
    """Log-probability of every completion token, and other quantities of the next-token distribution that a loss declared.

    Args:
        model: the policy.
        batch: what it reads.
        needs: quantities that need the policy's distribution, each with the hyper-parameters it takes.
        reference: a live reference, where a quantity is computed from both distributions.

    Returns: "logp" and the quantities by name; nats, zero where `batch.mask` is false.
    """
    if not needs:
        return {"logp": completion_logps(model, batch)}
    hidden, rows = completion_hidden(model, batch), [batch.targets]
    if any(need.source == "both" for need, _ in needs):
        assert reference is not None
        with torch.no_grad():
            rows.append(completion_hidden(reference, batch))

    def compute(policy: Tensor, targets: Tensor, reference_hidden: Tensor | None = None) -> list[Tensor]:
        reference_table = None
        if reference_hidden is not None:
            assert reference is not None
            with torch.no_grad():
                reference_table = head_of(reference)(reference_hidden).log_softmax(-1)
        columns = [policy.gather(-1, targets[:, None]).squeeze(-1)]
        for need, options in needs:
            assert need.compute is not None
            with torch.set_grad_enabled(need.differentiable and torch.is_grad_enabled()):
                table = policy if need.differentiable else policy.detach()
                columns.append(need.compute(table, reference_table, targets, **options))
        return columns

    names = ["logp", *(need.name for need, _ in needs)]
    values = head_of(model).values(compute, hidden, *rows)
    return {name: batch.scatter(value) for name, value in zip(names, values, strict=True)}


@torch.no_grad()
def completion_quantity(model: LanguageModel, batch: CompletionLayout, need: Need) -> Float[Tensor, "N T"]:
    """A quantity of the reference's next-token distribution alone, at every completion token."""

    def compute(table: Tensor, targets: Tensor) -> list[Tensor]:
        assert need.compute is not None
        return [need.compute(None, table, targets)]

    return batch.scatter(head_of(model).values(compute, completion_hidden(model, batch), batch.targets)[0])


def pair_batch(pairs: Sequence[TokenPair], device: Device = "cpu", *, gold: bool = False) -> Batch:
    """The chosen sides of B pairs, then their rejected sides; with `gold`, then the gold answers.

    Returns: a batch of 2B sequences, 3B with `gold`.
    """
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

    Example:
        >>> by_tokens([3, 10, 4, 9], budget=20)
        [[1, 3], [2, 0]]
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if groups and (len(groups[-1]) + 1) * sizes[groups[-1][0]] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def score_sequences(model: CausalLM, sequences: Sequences, budget: int = 8192) -> list[npt.NDArray[np.float32]]:
    """Log-probability of every completion token.

    Args:
        model: a causal language model, unwrapped.
        sequences: prompt and completion ids of each.
        budget: most tokens of a padded pass.

    Returns: nats, one float32 array per sequence, of the completion's length.
    """
    return per_sequence(model, sequences, lambda batch: completion_logps(model, batch), budget)


@torch.no_grad()
def per_sequence(
    model: CausalLM, sequences: Sequences, compute: Callable[[Batch], Float[Tensor, "N T"]], budget: int = 8192
) -> list[npt.NDArray[np.float32]]:
    """Values of completion tokens, computed in passes within a token budget.

    Args:
        model: says on which device the passes run.
        sequences: prompt and completion ids of each.
        compute: one value per completion token of a batch, shape [N, T].
        budget: most tokens of a padded pass.

    Returns: one float32 array per sequence, of the completion's length.
    """
    scored: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(sequences)
    for group in by_tokens([len(p) + len(c) for p, c in sequences], within(budget, model.device)):
        batch = Batch([sequences[i] for i in group], model.device)
        values, mask = compute(batch).float().cpu().numpy(), batch.mask.cpu().numpy()
        for row, index in enumerate(group):
            scored[index] = values[row][mask[row]]
    return scored
