"""Where a number came from: commit, versions, machine."""

import importlib.metadata
import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

from dpobench.artifacts.run_record import Provenance

LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "lm_eval", "numpy", "pandas", "scipy")


@lru_cache(maxsize=1)
def code() -> tuple[str, str | None, bool | None]:
    """Version of dpobench; commit and whether files differ from it, None where it does not run from a checkout."""
    from dpobench import __version__

    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return __version__, None, None
    status = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "dpobench", "variants", "evals")
    return __version__, _git(root, "rev-parse", "HEAD") or None, bool(status)


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Installed versions of Python and of the libraries that take part in a number."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def environment(device: str, precision: str, *, model_hash: str = "", data_hash: str = "") -> Provenance:
    """Commit, versions and machine, as they are recorded with every result.

    Args:
        device: "cpu" or "cuda", with a number or without.
        precision: of the arithmetic.
        model_hash: content key of the model.
        data_hash: content key of the training pairs.
    """
    import torch

    version, commit, dirty = code()
    kind = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return Provenance(
        dpobench=version,
        commit=commit,
        dirty=dirty,
        versions=versions(),
        threads=torch.get_num_threads(),
        device=device,
        hardware=kind,
        cores=os.cpu_count(),
        precision=precision,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        host=platform.system() + " " + platform.release().split("-")[0],
        model_hash=model_hash,
        data_hash=data_hash,
    )
