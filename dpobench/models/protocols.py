"""What this project uses of the models and tokenizers of `transformers`, which is not checked for types."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypedDict, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dpobench.data.template import Tokenizer as TokenizerOfText

PerHead = Float[Tensor, "1 heads S D"]
# Start of a prompt, its end, and the ends of its answers, which follow one another.
Piece = tuple[int, int, tuple[int, ...]]


class ForwardInputs(TypedDict, total=False):
    """Arguments of a model's forward pass."""

    input_ids: Int[Tensor, "N S"]
    attention_mask: Int[Tensor, "N S"] | Bool[Tensor, "N S"] | None
    position_ids: Int[Tensor, "N S"]
    use_cache: bool
    past_key_values: object
    logits_to_keep: int
    pieces: list[Piece]


class Prediction(Protocol):
    """What a forward pass returns."""

    logits: Float[Tensor, "N S V"]


class TextConfig(Protocol):
    """Configuration of a model; scaling and cap of its logits are read by name, where it has them."""

    _attn_implementation: str

    def get_text_config(self) -> Self:
        """The part that describes the decoder of text."""
        ...


class LanguageModel(Protocol):
    """A causal language model, bare or as accelerate wrapped it for several processes."""

    training: bool

    def __call__(self, **inputs: Any) -> Prediction:
        """Logits of the next token at every position."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""
        ...


class CausalLM(LanguageModel, Protocol):
    """A bare causal language model, as `load_model` returns it."""

    config: TextConfig

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    @property
    def forward(self) -> Callable[..., Prediction]:
        """The forward pass; its signature says which inputs the architecture takes."""
        ...

    def get_input_embeddings(self) -> nn.Embedding:
        """Token ids to hidden states; weight of shape [V, H]."""
        ...

    def get_output_embeddings(self) -> nn.Linear:
        """The head: hidden states to logits; weight of shape [V, H]."""
        ...

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Choose among the attention functions that are registered with the library."""
        ...

    def save_pretrained(self, save_directory: Path, *, safe_serialization: bool = True) -> None:
        """Write weights and configuration to a folder."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All weights with their names."""
        ...

    def get_parameter(self, target: str) -> nn.Parameter:
        """The weight of a name."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All parts, the model included."""
        ...

    def eval(self) -> Self:
        """Switch dropout off."""
        ...

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on or off."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device."""
        ...

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Say whether the weights get a gradient."""
        ...


class BackendTokenizer(Protocol):
    """The tokenizer of the library `tokenizers` within a fast one."""

    def to_str(self) -> str:
        """Its whole content as JSON."""
        ...


class Tokenizer(TokenizerOfText, Protocol):
    """A tokenizer with an end token, as `load_tokenizer` returns it."""

    is_fast: bool
    backend_tokenizer: BackendTokenizer

    @property
    def eos_token_id(self) -> int:
        """Id of the end token."""
        ...

    @property
    def special_tokens_map(self) -> Mapping[str, object]:
        """Control tokens by role."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Token ids by token, added tokens included."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        ...

    def save_pretrained(self, save_directory: Path) -> object:
        """Write the tokenizer's files to a folder."""
        ...


def unwrapped(model: LanguageModel) -> CausalLM:
    """The bare model within one that was wrapped for several processes."""
    return cast(CausalLM, getattr(model, "module", model))
