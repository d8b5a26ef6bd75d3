"""Finished tables kept between experiments, by the content of all that decides them; never by a path, never by a name alone."""

import contextlib
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from pyarrow import ArrowException

from dpobench.artifacts.files import cache_folder, digest, folder_hash, write_bytes
from dpobench.errors import UserError
from dpobench.models.checkpoint import Checkpoint, model_hash


def kept(kind: str, checkpoint: Checkpoint, told: Any, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table about a checkpoint's policy, from the cache or computed and put there.

    The key holds the checkpoint's content (of an adapter all of its files and its base), device, precision, threads, torch's version
    and what is told. A checkpoint that lies in no folder, or has no configuration of a model, is not cached. A cache that cannot be read
    or written costs time, never a result.

    Args:
        kind: what the tables are: the folder of the cache.
        checkpoint: its policy; the reference does not count.
        told: everything else that decides the table, in a form JSON can hold.
        compute: makes the table.

    Returns: the table, equal to what `compute` returned when it was made.
    """
    if not ((checkpoint.folder / "config.json").is_file() and list(checkpoint.folder.glob("*.safetensors"))):
        return compute()
    how = (checkpoint.device.partition(":")[0], checkpoint.precision, torch.get_num_threads(), torch.__version__)
    key = digest(*_content(checkpoint), how, told)
    file = cache_folder() / kind / key[:2] / f"{key}.parquet"
    with contextlib.suppress(OSError, ValueError, ArrowException):
        return pd.read_parquet(file, page_checksum_verification=True)
    table = compute()
    with contextlib.suppress(OSError, UserError):
        write_bytes(file, table.to_parquet(index=False, write_page_checksum=True))
    return table


def _content(checkpoint: Checkpoint) -> list[str]:
    """What the policy is made of."""
    if checkpoint.base is None:
        return [model_hash(checkpoint.folder)]
    return [model_hash(checkpoint.folder), folder_hash(checkpoint.folder, ("adapter_*",)), model_hash(checkpoint.base)]
