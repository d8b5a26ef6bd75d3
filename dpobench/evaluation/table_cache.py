"""A cache of finished tables between experiments, by the content of all that decides them; never by a path, never by a name alone."""

import contextlib
from collections.abc import Callable

import pandas as pd
import torch
from pyarrow import ArrowException
from pydantic import JsonValue

from dpobench.artifacts.files import cache_folder, digest, folder_hash, write_bytes
from dpobench.errors import UserError
from dpobench.models.checkpoint import Checkpoint, model_hash


def cached_table(
    kind: str, checkpoint: Checkpoint, settings: JsonValue, compute: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """A table about a checkpoint's policy, from the cache or computed and put there.

    The key holds the checkpoint's content (of an adapter all of its files and its base), device, precision, threads, torch's version
    and the settings. A checkpoint that lies in no folder, or has no configuration of a model, is not cached. A cache that cannot be
    read or written costs time, never a result.

    Args:
        kind: what the tables are: the folder of the cache.
        checkpoint: its policy; the reference does not count.
        settings: everything else that decides the table.
        compute: makes the table.

    Returns: the table, equal to what `compute` returned when it was made.
    """
    if not ((checkpoint.folder / "config.json").is_file() and list(checkpoint.folder.glob("*.safetensors"))):
        return compute()
    weights = [model_hash(checkpoint.folder)]
    if checkpoint.base is not None:
        weights += [folder_hash(checkpoint.folder, ("adapter_*",)), model_hash(checkpoint.base)]
    arithmetic = (checkpoint.device.partition(":")[0], checkpoint.precision, torch.get_num_threads(), torch.__version__)
    key = digest(*weights, arithmetic, settings)
    file = cache_folder() / kind / key[:2] / f"{key}.parquet"
    with contextlib.suppress(OSError, ValueError, ArrowException):
        return pd.read_parquet(file, page_checksum_verification=True)
    table = compute()
    with contextlib.suppress(OSError, UserError):
        write_bytes(file, table.to_parquet(index=False, write_page_checksum=True))
    return table
