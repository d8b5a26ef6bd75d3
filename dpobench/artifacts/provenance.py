"""Where a number came from: commit, versions, machine."""

import importlib.metadata
import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "lm_eval", "numpy", "pandas", "scipy")


@lru_cache(maxsize=1)
def code() -> dict[str, Any]:
    """Version of dpobench; commit and whether files differ from it, where it runs from a checkout."""
    from dpobench import __version__

    root = Path(__file__).resolve().parents[2]
    found: dict[str, Any] = {"dpobench": __version__, "commit": None, "dirty": None}
    if (root / ".git").exists():
        found["commit"] = _git(root, "rev-parse", "HEAD") or None
        status = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "dpobench", "variants", "evals")
        found["dirty"] = bool(status)
    return found


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
    """Installed versions of the libraries that take part in a number."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        found[name] = importlib.metadata.version(name)
    return found


def environment(device: str, precision: str) -> dict[str, Any]:
    """Commit, versions and machine, as they are written beside every result."""
    import torch

    kind = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        **code(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "device": device,
        "hardware": kind,
        "cores": os.cpu_count(),
        "precision": precision,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "host": platform.system() + " " + platform.release().split("-")[0],
    }
