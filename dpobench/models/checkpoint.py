"""Models on disk: loaded, checked and saved; a policy with the reference it started from."""

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import cast

import torch

from dpobench.artifacts.files import digest, file_hash
from dpobench.errors import DpobenchError, UserError
from dpobench.models import adapters
from dpobench.models.protocols import CausalLM, Tokenizer

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float64": torch.float64}
# What makes a model: weights, shape, tokenizer, template. Generation defaults are left out: sampling is always explicit.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "added_tokens.json",
)

# Name, size and time of change (ns) of every file of a folder.
Stamp = tuple[tuple[str, int, int], ...]


def model_hash(folder: Path) -> str:
    """Content key of a model folder: weights, configuration and tokenizer."""
    files = sorted({file for pattern in (*_WEIGHTS, *_TOKENIZER) for file in folder.glob(pattern)})
    return digest([(file.name, file_hash(file)) for file in files])


def stamp_of(folder: Path) -> Stamp:
    """Names, sizes and times of the files of a folder: while they stay, so does what was read from it."""
    return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir()) if f.is_file())


@lru_cache(maxsize=16)
def known_hash(folder: Path, stamp: Stamp) -> str:
    """`model_hash`, computed again only when the folder's stamp has changed."""
    return model_hash(folder)


def weights_hash(folder: Path) -> str:
    """Content key of weights and architecture alone, whatever tokenizer the folder holds."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    return digest(shape, [(file.name, file_hash(file)) for file in sorted(folder.glob("*.safetensors"))])


def resolve(name: str, revision: str | None = None) -> Path:
    """The local folder of a model.

    Args:
        name: a folder, or a hub name (downloaded unless `HF_HUB_OFFLINE` is set and it is not cached).
        revision: of a hub name; None for its newest.

    Raises:
        UserError: neither is there, or the folder holds no safetensors, not all of its shards, or an adapter.
    """
    folder = locate(name, revision)
    if adapters.is_adapter(folder):
        raise UserError(
            f"model {name!r}: {folder} holds an adapter, which `dpobench evaluate` can score; a model to start from is whole: "
            "merge it into its base first"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"model {name!r}: {folder} has no config.json; name the folder that save_pretrained wrote")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"model {name!r}: {folder} has no *.safetensors; convert it, pickled weights are not loaded")
    for index in folder.glob("*.safetensors.index.json"):
        _check_shards(index)
    return folder.resolve()


def locate(name: str, revision: str | None = None) -> Path:
    """The local folder of a model or an adapter, unchecked.

    Args:
        name: a folder, or a hub name.
        revision: of a hub name; None for its newest.

    Raises:
        UserError: there is no such folder, and the hub does not give it.
    """
    folder = Path(os.path.expanduser(name))
    if folder.is_file():
        raise UserError(f"model {name!r} is a file; name the folder it lies in, {folder.parent}")
    return folder if folder.is_dir() else _from_hub(name, revision)


def _check_shards(index: Path) -> None:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged ({error!r}); copy the model again") from error
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise UserError(
            f"model {index.parent}: {len(missing)} of {len(shards)} files of weights are missing, the first is {missing[0]}; "
            "copy the model again"
        )


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"model {name!r}: no such folder; name a folder that save_pretrained wrote, or a hub name like 'org/model'"
        )
    try:
        allowed = [*_WEIGHTS, *_TOKENIZER, "generation_config.json", adapters.CONFIG]
        return Path(snapshot_download(name, allow_patterns=allowed, revision=revision))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {name!r}: no such folder, and the hub does not give it ({reason}); check the name, or name a local folder"
        ) from error


def check_weights(folder: Path) -> None:
    """Read every weight of a folder once, a tensor at a time, before anything is computed with them.

    Raises:
        UserError: a file is damaged, or a weight is not finite; it is named.
    """
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - no mapping: it has no iterator
                    _check_finite(folder, name, stored.get_tensor(name))
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({error}); copy it again") from error


def _check_finite(folder: Path, name: str, weight: torch.Tensor) -> None:
    if weight.is_floating_point() and not torch.isfinite(weight).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise UserError(f"model {folder}: {name} holds {bad} values that are not finite; take another checkpoint")


def load_model(folder: Path, *, device: str = "cpu", dtype: str = "float32") -> CausalLM:
    """Load a causal language model for evaluation, dropout off.

    Args:
        folder: written by `save_pretrained`.
        device: "cpu", "cuda" or one of several: "cuda:1".
        dtype: of the weights in memory, a key of `DTYPES`.

    Raises:
        UserError: the architecture is not a causal language model, its weights are damaged or not all there, or not finite.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (ValueError, OSError, ImportError) as error:
        raise UserError(
            f"model {folder}: {str(error).strip().splitlines()[0]}; a decoder-only model is expected"
        ) from error
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model {folder}: its weights cannot be read ({reason}); copy or save it again") from error
    if loading["missing_keys"]:
        # They would be drawn at random.
        first = sorted(loading["missing_keys"])[0]
        raise UserError(
            f"model {folder}: {len(loading['missing_keys'])} weights are missing, {first} among them; save it again"
        )
    for name, weight in model.named_parameters():
        _check_finite(folder, name, weight)
    return cast(CausalLM, model.to(device).eval())


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a model folder.

    Raises:
        UserError: there is none, or it knows no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"tokenizer {folder}: it cannot be loaded ({reason}); save it there with tokenizer.save_pretrained"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {folder}: it has no end token; set eos_token in its tokenizer_config.json")
    return tokenizer


def check_vocabulary(model: CausalLM, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose ids reach past the embedding.

    Raises:
        UserError: both sizes are named.
    """
    size, top = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
    if top >= size:
        raise UserError(
            f"the model has {size} embeddings, its tokenizer uses ids up to {top}; they do not belong together"
        )


def save(model: CausalLM, tokenizer: Tokenizer, folder: Path) -> float:
    """Save as an ordinary Hugging Face folder, load it again and compare.

    Args:
        model: a causal language model, unwrapped.
        tokenizer: its tokenizer.
        folder: to write to.

    Returns: from `compare_with_saved`.

    Raises:
        DpobenchError: the saved model answers differently.
    """
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return compare_with_saved(model, folder)


def compare_with_saved(model: CausalLM, folder: Path) -> float:
    """Compare a model in memory with the one in a folder.

    Returns: the largest difference of the logits on a probe of eight tokens (0.0 as a rule).

    Raises:
        DpobenchError: the model in the folder answers differently.
    """
    dtype = next(model.parameters()).dtype
    again = load_model(folder, device=str(model.device), dtype={v: k for k, v in DTYPES.items()}[dtype])
    probe = torch.arange(8, device=model.device).unsqueeze(0) % model.get_input_embeddings().weight.shape[0]
    training = model.training
    model.eval()
    with torch.no_grad():
        difference = float((model(input_ids=probe).logits - again(input_ids=probe).logits).abs().max())
    model.train(training)
    if not difference <= 1e-5:
        raise DpobenchError(f"{folder}: the saved model differs from the trained one by {difference:g} in its logits")
    return difference


@lru_cache(maxsize=1)
def _shared_model(key: str, folder: Path, dtype: str) -> CausalLM:
    """A model that many checkpoints share, loaded once a process; off the accelerator, whose memory training needs.

    Args:
        key: its content key: a folder whose content changed is read again.
        folder: of the model.
        dtype: of the weights in memory.
    """
    return load_model(folder, dtype=dtype)


@dataclass
class Checkpoint:
    """A policy and the reference it started from.

    Args:
        folder: the policy, an ordinary Hugging Face folder.
        reference_folder: the reference; the same folder where the reference itself is scored.
        device: where both are loaded.
        precision: "float32" or "bf16": dtype of both in memory.
        run: record of the run: id, variant, params, strength, unit, seed; empty for the reference.
        reference_hash: content key of the reference; with it the checkpoints that a process scores share one reference.
        base: the model that `folder` holds an adapter of; None where it holds a whole model.

    Example:
        >>> Checkpoint(Path("policy"), Path("reference")).is_reference  # models are loaded when they are first used
        False
    """

    folder: Path
    reference_folder: Path
    device: str = "cpu"
    precision: str = "float32"
    run: Mapping[str, object] = field(default_factory=dict)
    reference_hash: str = ""
    base: Path | None = None

    @property
    def is_reference(self) -> bool:
        """Whether this is the reference itself."""
        return self.folder == self.reference_folder

    @cached_property
    def policy(self) -> CausalLM:
        """The policy, loaded once; an adapter is merged into its base."""
        if self.base is None:
            return load_model(self.folder, device=self.device, dtype=self.precision)
        return adapters.merge(
            load_model(self.base, device=self.device, dtype=self.precision), adapters.read(self.folder)
        )

    @cached_property
    def reference(self) -> CausalLM:
        """The reference, loaded once; not to be changed."""
        if self.is_reference:
            return self.policy
        if self.reference_hash:
            shared = _shared_model(self.reference_hash, self.reference_folder, self.precision)
            return shared if self.device == "cpu" else copy.deepcopy(shared).to(self.device)
        return load_model(self.reference_folder, device=self.device, dtype=self.precision)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer both share."""
        return load_tokenizer(self.reference_folder)
