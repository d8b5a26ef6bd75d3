"""Raw rows of a file, a saved data set or a data set on the hub; `layouts` finds out what they mean.

JSON and CSV are read here rather than by a library, so that an error can name the line, the byte and the reason.
"""

import csv
import difflib
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dpobench.data.rows import RawRow
from dpobench.errors import BadRow, UnknownName, UserError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

# A longer line is no row of text: most often a whole array written without line breaks, or not a text file.
LONGEST_LINE = 256 * 2**20
_DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".gz", ".parquet", ".csv", ".tsv", ".arrow", ".txt")
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "zstandard-compressed",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"ARROW1": "a bare Arrow file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
_BOM = b"\xef\xbb\xbf"


class _DuplicateKey(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(f'key "{key}" appears twice')
        self.key = key


def load(source: str, *, split: str | None = None, subset: str | None = None) -> tuple[list[RawRow], str]:
    """Read every row of a data set.

    Args:
        source: a file (jsonl, json, a JSON array, csv, tsv, each also as .gz; parquet), a `save_to_disk` folder, or a
            name on the hub.
        split: which split of a saved or hub data set; without it `train`, or the only one there is.
        subset: configuration name of a hub data set.

    Returns:
        The rows in their order, at least one, and the name to use in messages.

    Raises:
        UserError: nothing of this name exists, or the file cannot be read; names file, place and reason.

    Example:
        >>> load("no-such-folder/pairs.jsonl")
        Traceback (most recent call last):
        dpobench.errors.UserError: no-such-folder/pairs.jsonl: no such file or folder: the folder no-such-folder does not exist ...
    """
    path = Path(source).expanduser()
    if os.path.isdir(path):
        rows = _saved_folder(path, split)
    elif os.path.exists(path):
        if split or subset:
            raise UserError(f"{source}: a single file has no splits or subsets; leave out {split or subset!r}")
        rows = _file_rows(path)
    elif _is_a_path(source):
        raise UserError(f"{source}: no such file or folder{_nearest_file(path)}")
    else:
        rows = _hub_rows(source, split, subset)
    if not rows:
        raise UserError(f"{source}: 0 rows; at least one is needed")
    return rows, source


def _is_a_path(source: str) -> bool:
    hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)
    return hub_name is None or source.startswith(".") or source.lower().endswith(_DATA_SUFFIXES)


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not os.path.isdir(folder):
        existing = next((str(p) for p in folder.parents if os.path.isdir(p)), os.curdir)
        return f": the folder {folder} does not exist (the last that does: {existing})"
    names = sorted(entry.name for entry in folder.iterdir())
    guess = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f". Did you mean {folder / guess[0]}?" if guess else f"; {folder} has nothing of a similar name"


def _file_rows(path: Path) -> list[RawRow]:
    content = _content(path)
    if content[:4] == b"PAR1":
        return _parquet_rows(path)
    foreign = next((what for magic, what in _OTHER_FORMATS.items() if content.startswith(magic)), None)
    if foreign is not None:
        raise UserError(f"{path}: is {foreign}; give UTF-8 JSON lines, JSON, CSV (each may be .gz) or parquet")
    if not content.strip():
        raise UserError(f"{path}: 0 rows (the file is empty); was it written or downloaded completely?")
    text = _decoded(path, content)
    names = [suffix.lower() for suffix in path.suffixes]
    if ".csv" in names or ".tsv" in names:
        return _csv_rows(path, text, "\t" if ".tsv" in names else ",")
    return _json_rows(path, text)


def _content(path: Path) -> bytes:
    """All bytes of a file, unpacked if they are gzip, whatever the file is called."""
    parts: list[bytes] = []
    try:
        with path.open("rb") as raw:
            if raw.peek(2)[:2] != b"\x1f\x8b":
                return raw.read()
            with gzip.GzipFile(fileobj=raw) as stream:
                while chunk := stream.read(1 << 16):
                    parts.append(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = "is cut off" if isinstance(error, EOFError) else f"is damaged ({error})"
        done = sum(map(len, parts))
        raise UserError(f"{path}: the gzip stream {reason} after byte {done:,} of its content; get it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    return b"".join(parts)


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        offset = error.start + (len(_BOM) if content.startswith(_BOM) else 0)
        line = content.count(b"\n", 0, offset) + 1
        raise UserError(
            f"{path} line {line}, byte {offset:,}: not UTF-8 (0x{content[offset]:02x}, {error.reason}); "
            f"convert it, for example with iconv -f LATIN1 -t UTF-8"
        ) from error


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [key for key, _ in pairs]
        raise _DuplicateKey(next(key for key in names if names.count(key) > 1))
    return row


# Python's parser recurses and limits the digits of an integer: both are errors of the file, not of the program.
_UNREADABLE = (ValueError, RecursionError)


def _parse(text: str) -> object:
    parsed: object = json.loads(text, object_pairs_hook=_unique_keys)
    return parsed


def _json_rows(path: Path, text: str) -> list[RawRow]:
    if text.lstrip()[:1] == "[":
        return _array_rows(path, text)
    try:
        _parse(text.lstrip().split("\n", 1)[0])
    except _UNREADABLE:
        document = _document(text)
        if document is not None:
            return document
    return _line_rows(path, text)


def _document(text: str) -> list[RawRow] | None:
    """Rows of a file that is one JSON object over several lines: `{"data": [...]}`, or a single row."""
    try:
        content = _parse(text)
    except _UNREADABLE:
        return None
    if not isinstance(content, dict):
        return None
    values = list(content.values())
    if len(values) == 1 and isinstance(values[0], list) and all(isinstance(v, dict) for v in values[0]):
        return values[0]
    return [content]


def _line_rows(path: Path, text: str) -> list[RawRow]:
    rows: list[RawRow] = []
    lines = text.split("\n")
    last = max(number for number, line in enumerate(lines) if line.strip())
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        where = f"{path} line {number + 1}"
        if len(line) > LONGEST_LINE:
            raise UserError(f"{where}: {len(line):,} characters, at most {LONGEST_LINE:,}; write one row per line")
        try:
            row = _parse(line)
        except _DuplicateKey as error:
            raise BadRow(where, len(rows), error.key, "appears twice", "keep one of the two") from error
        except _UNREADABLE as error:
            offset = len("\n".join(lines[:number]).encode(errors="surrogatepass")) + (number > 0)
            remedy = "the file seems cut off: get it again, or delete this line"
            remedy = remedy if number == last else "mend or delete this line (one JSON object per line)"
            raise UserError(f"{where}, byte {offset:,}: not valid JSON ({error}); {remedy}") from error
        rows.append(_object(where, len(rows), row))
    return rows


def _object(where: str, number: int, row: object) -> RawRow:
    if not isinstance(row, dict):
        raise BadRow(where, number, "*", f"is a {type(row).__name__}", 'a row is an object: {"prompt": ..., ...}')
    return row


def _array_rows(path: Path, text: str) -> list[RawRow]:
    try:
        rows = _parse(text)
    except _UNREADABLE as error:
        number = _readable_elements(text)
        if isinstance(error, _DuplicateKey):
            raise BadRow(str(path), number, error.key, "appears twice", "keep one of the two") from error
        cut = isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip()) - 1
        remedy = "the file seems cut off: get it again" if cut or "Unterminated" in str(error) else "mend this row"
        raise UserError(f"{path} row {number}: not valid JSON ({error}); {remedy}") from error
    # The text begins with a bracket, and so does no other JSON value.
    assert isinstance(rows, list)
    return [_object(str(path), number, row) for number, row in enumerate(rows)]


def _readable_elements(text: str) -> int:
    """How many elements of an array can be read before the first that cannot."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    place, count = text.index("[") + 1, 0
    gap = re.compile(r"[\s,]*")
    while place < len(text):
        place = gap.match(text, place).end()  # type: ignore[union-attr]
        try:
            _, place = decoder.raw_decode(text, place)
        except _UNREADABLE:
            break
        count += 1
    return count


def _csv_rows(path: Path, text: str, delimiter: str) -> list[RawRow]:
    limit = csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader)
        _refuse_duplicate_names(path, header)
        rows: list[RawRow] = []
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path} row {len(rows)} (ends in line {reader.line_num}): {len(cells)} cells under {len(header)} "
                    f"column names; quote cells that hold a comma or a line break"
                )
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: not valid CSV ({error}); mend its quotes") from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _refuse_duplicate_names(path: Path, names: Iterable[str]) -> None:
    earlier: set[str] = set()
    for name in names:
        if name in earlier:
            raise UserError(f'{path}: column "{name}" appears twice; rename or remove one of the two')
        earlier.add(name)


def _parquet_rows(path: Path) -> list[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({_first_line(error)}); get it again") from error
    _refuse_duplicate_names(path, table.column_names)
    rows: list[RawRow] = table.to_pylist()
    return rows


def _saved_folder(path: Path, split: str | None) -> list[RawRow]:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        files = sorted(entry.name for entry in path.iterdir() if entry.name.lower().endswith(_DATA_SUFFIXES))
        hint = f"name one of its files: {', '.join(files[:8])}" if files else "it holds no data file"
        raise UserError(f"{path}: is a folder, but none that save_to_disk of datasets has written; {hint}")
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: the saved data set cannot be read ({_first_line(error)}); save it again") from error
    return _one_split(str(path), loaded, split)


def _hub_rows(source: str, split: str | None, subset: str | None) -> list[RawRow]:
    import datasets

    expected = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    try:
        loaded = datasets.load_dataset(source, subset)
    except expected as error:
        offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE")
        tried = (
            "only the local cache was searched: HF_HUB_OFFLINE is set"
            if offline
            else "the hub and its cache were searched"
        )
        raise UserError(
            f"{source}: no file or folder of this name here{_nearest_file(Path(source))}, and no data set of this name could "
            f"be loaded ({tried}; {type(error).__name__}: {_first_line(error)})"
        ) from error
    return _one_split(source, loaded, split)


def _one_split(name: str, loaded: "Dataset | DatasetDict", split: str | None) -> list[RawRow]:
    rows: list[RawRow]
    if not isinstance(loaded, dict):
        if split is not None:
            raise UserError(f"{name}: holds a single split; leave out {split!r}")
        rows = loaded.to_list()
        return rows
    names = sorted(loaded)
    if split is None:
        if "train" not in names and len(names) != 1:
            raise UserError(f"{name}: which split? It has {', '.join(names)}")
        split = "train" if "train" in names else names[0]
    if split not in names:
        raise UnknownName(f"split of {name}", split, names)
    rows = loaded[split].to_list()
    return rows


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
