"""Adapters of the `peft` library: read, checked and merged into their base in memory, never on disk."""

import json
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from dpobench.errors import UserError
from dpobench.models.protocols import CausalLM

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
# Largest difference of the logits that merging may make, as a share of the largest logit.
_MERGED = {torch.float64: 1e-6, torch.float32: 1e-4}
_PROBE = 8


@dataclass(frozen=True)
class Adapter:
    """What an adapter's configuration states.

    Args:
        folder: of the adapter.
        kind: "LORA" or another name of `peft`'s.
        base: the model it was trained on: a folder or a hub name.
        revision: of a hub name.
    """

    folder: Path
    kind: str
    base: str
    revision: str | None = None


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, with or without its weights."""
    return (folder / CONFIG).is_file()


def read(folder: Path) -> Adapter:
    """Read an adapter's configuration and refuse what cannot, or must not, be loaded.

    Raises:
        UserError: its configuration is damaged or names no base; its weights are missing or pickled; a whole model is in the same folder.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, base, revision = str(config["peft_type"]), config.get("base_model_name_or_path"), config.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"adapter {folder}: {CONFIG} is damaged ({error!r}); save the adapter again") from error
    if not isinstance(base, str) or not base:
        raise UserError(
            f"adapter {folder}: {CONFIG} names no base model; write the folder or hub name of the model it was trained on "
            "under base_model_name_or_path"
        )
    if config.get("megatron_config"):
        raise UserError(
            f"adapter {folder}: it is one of Megatron's, which would load code; merge it there and give the model"
        )
    if not (folder / WEIGHTS).is_file():
        pickled = f"; {_PICKLED} is pickled and not loaded: convert it" if (folder / _PICKLED).is_file() else ""
        raise UserError(f"adapter {folder}: no {WEIGHTS}{pickled or '; save the adapter again'}")
    if list(folder.glob("model*.safetensors")):
        raise UserError(f"{folder} holds an adapter and a whole model; move one of them into a folder of its own")
    return Adapter(folder, kind, base, revision if isinstance(revision, str) else None)


def merge(model: CausalLM, adapter: Adapter) -> CausalLM:
    """Add an adapter's weights to those of its base.

    The merged model must answer as the base with the separate adapter does: the logits of a probe are compared.

    Args:
        model: the base in memory; it is changed.
        adapter: from `read`.

    Returns: an ordinary model.

    Raises:
        UserError: `peft` is not installed, the adapter does not fit the base, or it is of a kind that cannot be merged.
    """
    check(adapter)
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wrapped = PeftModel.from_pretrained(model, str(adapter.folder), torch_device=str(model.device)).eval()
            loading = set_peft_model_state_dict(wrapped, load_file(adapter.folder / WEIGHTS, device=str(model.device)))
            before = _logits(wrapped)
            merged: CausalLM = wrapped.merge_and_unload(safe_merge=True).eval()
    except (RuntimeError, ValueError, KeyError, TypeError, NotImplementedError, AttributeError, OSError) as error:
        raise UserError(f"adapter {adapter.folder} ({adapter.kind}) {_unfit(adapter)}: {_one_line(error)}") from error
    missing = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
    if missing or loading.unexpected_keys:
        reason = missing[0] if missing else f"the base has no place for {loading.unexpected_keys[0]}"
        raise UserError(f"adapter {adapter.folder} ({adapter.kind}) {_unfit(adapter)}: {reason[:200]}")
    difference, scale = float((_logits(merged) - before).abs().max()), max(1.0, float(before.abs().max()))
    if not difference <= _MERGED.get(before.dtype, 0.05) * scale:
        raise UserError(
            f"adapter {adapter.folder} ({adapter.kind}): merged into its base it answers otherwise (logits off by {difference:.2g}); "
            "merge it where it was trained and give the model"
        )
    return merged


def check(adapter: Adapter) -> None:
    """Refuse an adapter that the installed `peft` does not know, before anything is computed.

    The library leaves out what it does not know with no more than a warning; the adapter would then be another one.

    Raises:
        UserError: `peft` is not installed, or knows no such kind or option.
    """
    try:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise UserError(f"adapter {adapter.folder} needs the library peft; pip install 'dpobench[peft]'") from error
    config = json.loads((adapter.folder / CONFIG).read_text(encoding="utf-8"))
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(adapter.kind)
    if known is None:
        raise UserError(
            f"adapter {adapter.folder}: the installed peft knows no kind {adapter.kind}; install a newer one"
        )
    unknown = sorted(
        key for key, value in config.items() if value and key not in {field.name for field in fields(known)}
    )
    if unknown:
        raise UserError(
            f"adapter {adapter.folder} ({adapter.kind}): the installed peft does not know its option {unknown[0]} = "
            f"{config[unknown[0]]!r:.80}; install a newer one, or merge it where it was trained and give the model"
        )


def _unfit(adapter: Adapter) -> str:
    return f"cannot be merged into its base {adapter.base}"


def _logits(model: CausalLM) -> Float[Tensor, "1 P V"]:
    """Logits of the probe, P tokens."""
    size = model.get_input_embeddings().weight.shape[0]
    probe = (torch.arange(_PROBE, device=model.device) % size).unsqueeze(0)
    with torch.no_grad():
        return model(input_ids=probe).logits


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
