"""A preference pair as the model reads it: token ids, one prompt for both sides, the boundary in tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpobench.artifacts.files import digest, write_bytes
from dpobench.errors import DpobenchError

# Token ids, shape [tokens]; log-probabilities of tokens in nats, shape [tokens].
Ids = npt.NDArray[np.int64]
Logps = npt.NDArray[np.float32]
_Number = TypeVar("_Number", np.int64, np.float32)


@dataclass(frozen=True)
class TokenPair:
    """One tokenised pair.

    Args:
        id: stable identity of the row.
        prompt: token ids that both sides share, begin token and generation prompt included.
        chosen: token ids of the preferred answer, its end token included iff the answer ended.
        rejected: the same of the other answer.
        columns: numeric extra columns of the data set.
        chosen_reference: log-probability of each chosen token under the reference, nats; None before they are computed.
        rejected_reference: the same of the rejected tokens.
        gold: token ids of a third, best answer, its end token included iff the answer ended; None where the row has none.
        extras: per-token constants of the chosen and rejected side, by the name a loss declared; neither stored nor hashed.
        mismatched: completions of another prompt under this prompt, with the reference's log-probabilities; neither stored
            nor hashed.

    Example:
        >>> pair = TokenPair("a", prompt=np.array([1, 2]), chosen=np.array([3, 4, 9]), rejected=np.array([5, 9]))
        >>> pair.size
        9
    """

    id: str
    prompt: Ids
    chosen: Ids
    rejected: Ids
    columns: Mapping[str, float] = field(default_factory=dict)
    chosen_reference: Logps | None = None
    rejected_reference: Logps | None = None
    gold: Ids | None = None
    extras: Mapping[str, tuple[Logps, Logps]] = field(default_factory=dict)
    mismatched: "TokenPair | None" = None

    @property
    def size(self) -> int:
        """Tokens of both sides, the prompt counted twice, as a padded batch computes them; a gold answer is not among them."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    def with_reference(self, chosen: Logps, rejected: Logps) -> "TokenPair":
        """The same pair with the reference's log-probabilities.

        Args:
            chosen: of each chosen token, nats.
            rejected: of each rejected token, nats.

        Raises:
            DpobenchError: a log-probability is missing, positive or not finite.
        """
        for side, ids in ((chosen, self.chosen), (rejected, self.rejected)):
            if len(side) != len(ids) or not np.isfinite(side).all() or (side > 1e-4).any():
                raise DpobenchError(
                    f"pair {self.id}: the reference gives log-probabilities that are missing or not finite"
                )
        return replace(self, chosen_reference=chosen, rejected_reference=rejected)


_LISTS = ("prompt", "chosen", "rejected")
_REFERENCE = ("chosen_reference", "rejected_reference")


def write_pairs(path: Path, pairs: Sequence[TokenPair]) -> None:
    """Write pairs to a parquet file: one row a pair, lists of token ids and log-probabilities."""
    columns: dict[str, pa.Array | list[str]] = {"id": [p.id for p in pairs]}
    has_gold = any(p.gold is not None for p in pairs)
    for name in (*_LISTS, "gold") if has_gold else _LISTS:
        columns[name] = pa.array([getattr(p, name) for p in pairs], pa.list_(pa.int32()))
    for name in _REFERENCE:
        columns[name] = pa.array([getattr(p, name) for p in pairs], pa.list_(pa.float32()))
    for name in sorted({key for p in pairs for key in p.columns}):
        columns[f"column.{name}"] = pa.array([p.columns.get(name) for p in pairs], pa.float64())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def read_pairs(path: Path) -> list[TokenPair]:
    """Read what `write_pairs` wrote."""
    table = pq.read_table(path)
    extra = {
        name.removeprefix("column."): table[name].to_pylist()
        for name in table.column_names
        if name.startswith("column.")
    }
    lists = {name: _arrays(table[name], np.int64) for name in _LISTS}
    golds = _optional_arrays(table["gold"], np.int64) if "gold" in table.column_names else [None] * len(table)
    logps = {name: _optional_arrays(table[name], np.float32) for name in _REFERENCE}
    return [
        TokenPair(
            id=identity,
            prompt=lists["prompt"][i],
            chosen=lists["chosen"][i],
            rejected=lists["rejected"][i],
            columns={name: values[i] for name, values in extra.items() if values[i] is not None},
            chosen_reference=logps["chosen_reference"][i],
            rejected_reference=logps["rejected_reference"][i],
            gold=golds[i],
        )
        for i, identity in enumerate(table["id"].to_pylist())
    ]


def _arrays(column: pa.ChunkedArray, dtype: type[_Number]) -> list[npt.NDArray[_Number]]:
    """The lists of a column, one array a row; empty where the row has none."""
    chunk = column.combine_chunks()
    flat = chunk.values.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    offsets = chunk.offsets.to_numpy()
    return [flat[start:end] for start, end in pairwise(offsets)]


def _optional_arrays(column: pa.ChunkedArray, dtype: type[_Number]) -> list[npt.NDArray[_Number] | None]:
    """The lists of a column, one array a row; None where the row has none."""
    present = column.is_valid().to_pylist()
    return [array if there else None for array, there in zip(_arrays(column, dtype), present, strict=True)]


def pairs_hash(pairs: Sequence[TokenPair]) -> str:
    """Content key of tokenised pairs, the reference's log-probabilities left out; gold answers enter where there are any."""
    return digest([_content(p) for p in pairs])


def _content(pair: TokenPair) -> tuple[object, ...]:
    gold = () if pair.gold is None else (pair.gold.tolist(),)
    sides = (pair.prompt.tolist(), pair.chosen.tolist(), pair.rejected.tolist())
    return (pair.id, *sides, dict(pair.columns), *gold)
