"""The table of tiles: rows of `tiles.toml`, and of the user's own file, validated and found by kind, place and dtype.

Both files are read once, at the first launch that wants a tile. An error in one of them is one line that names it.
"""

import os
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

PACKAGED = Path(__file__).with_name("tiles.toml")
DTYPES = ("float64", "float32", "float16", "bfloat16")
# The least side that `tl.dot` takes.
_LEAST = 16


@dataclass(frozen=True)
class Row:
    """The largest tile of a kind of kernel, and how it is launched.

    Attributes:
        kernel: the kind of kernel.
        on: where: names of GPUs, architectures, "cuda" for every other GPU, or "cpu".
        dtypes: of the operands.
        M, K, N: a program owns y[M N] at most, in steps of K.
        warps, stages: launch options on a GPU.
        small: the largest M N of a tile for which 4 warps are enough.
        least: the fewest of its tiles that a large product has; a product of fewer is not large.
        reason: why it is so, in words.
    """

    kernel: str
    on: tuple[str, ...]
    dtypes: tuple[str, ...]
    M: int
    K: int
    N: int
    reason: str
    warps: int = 4
    stages: int = 3
    small: int = 0
    least: int = 0


@dataclass(frozen=True)
class Split:
    """Into how much a launch's work is split, where it can be.

    Attributes:
        on: where, as in `Row`.
        programs: that fill the device.
        reason: why, in words.
        bytes: of operands that stay in a core's cache while programs that share rows run one after another; 0 where
            that is not counted on.
    """

    on: tuple[str, ...]
    programs: int
    reason: str
    bytes: int = 0


class Table:
    """Rows by kind, place and dtype, and splits by place; of several files the first that has a row is taken."""

    def __init__(self, files: Iterable[tuple[list[Row], list[Split]]]) -> None:
        self.rows: dict[tuple[str, str, str], Row] = {}
        self.splits: dict[str, Split] = {}
        for rows, splits in files:
            for row in rows:
                for key in _keys(row):
                    self.rows.setdefault(key, row)
            for split in splits:
                for place in split.on:
                    self.splits.setdefault(place, split)
        self._found: dict[tuple[str, tuple[str, ...], str], Row] = {}

    def row(self, kind: str, places: tuple[str, ...], dtype: str) -> Row:
        """The row of a kind, or of the more general kind where it has none, at the first of the places that has one."""
        row = self._found.get((kind, places, dtype))
        if row is None:
            keys = ((k, place, dtype) for k in _kinds(kind) for place in places)
            row = next((self.rows[key] for key in keys if key in self.rows), None)
            if row is None:
                raise ValueError(f"tiles: kind is {kind!r} in {dtype} on {places[0]}, wanted one with a row")
            self._found[kind, places, dtype] = row
        return row

    def split(self, places: Sequence[str]) -> Split:
        """That of the first of the places that has one."""
        return next(self.splits[place] for place in places if place in self.splits)


_table: Table | None = None


def table() -> Table:
    """The rows in use: of the user's file, then the package's.

    Raises:
        ValueError: a file with an error, in one line.
    """
    global _table
    if _table is None:
        own = users_file()
        _table = Table([read(file) for file in (own, PACKAGED) if file is not None])
    return _table


@contextmanager
def trying(row: Row) -> Iterator[None]:
    """A context in which this row goes before all others of its kind, places and dtypes."""
    before, tried = table(), Table([])
    tried.rows, tried.splits = before.rows | dict.fromkeys(_keys(row), row), before.splits
    with _using(tried):
        yield


@contextmanager
def noting() -> Iterator[dict[tuple[str, str], Row]]:
    """A context that notes which kinds launches ask for in which dtypes, and the rows that they get."""
    noted: dict[tuple[str, str], Row] = {}
    before = table()

    class Noting(Table):
        def row(self, kind: str, places: tuple[str, ...], dtype: str) -> Row:
            return noted.setdefault((kind, dtype), before.row(kind, places, dtype))

    listening = Noting([])
    listening.splits = before.splits
    with _using(listening):
        yield noted


@contextmanager
def _using(other: Table) -> Iterator[None]:
    global _table
    before, _table = _table, other
    try:
        yield
    finally:
        _table = before


def users_file() -> Path | None:
    """The file of rows measured on this machine, None where there is none.

    Raises:
        ValueError: GRADLAB_TILES names a file that is not there.
    """
    named = os.environ.get("GRADLAB_TILES")
    if named is None:
        try:
            file = default_file()
            return file if file.is_file() else None
        except (OSError, ValueError):
            # No home, or another user's, as containers have them.
            return None
    if named and not Path(named).is_file():
        raise ValueError(f"tiles: GRADLAB_TILES is {named!r}, wanted a file of tiles")
    return Path(named) if named else None


def default_file() -> Path:
    """Where the user's file is, unless GRADLAB_TILES says otherwise.

    Raises:
        ValueError: this user has no home.
    """
    try:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    except RuntimeError as error:
        raise ValueError("tiles: HOME is not set, wanted it, XDG_CONFIG_HOME or GRADLAB_TILES") from error
    return folder / "gradlab" / "tiles.toml"


def read(file: Path) -> tuple[list[Row], list[Split]]:
    """The rows and splits of a file.

    Raises:
        ValueError: it is no such file; one line that names the file, the entry and the key.
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tiles: {file} came with {' '.join(str(error).split())}, wanted a readable TOML file"
        ) from error
    if unknown := set(data) - {"tile", "split"}:
        raise ValueError(f"tiles: {file} has {', '.join(sorted(unknown))}, wanted [[tile]] and [[split]]")
    rows = [_entry(Row, given, f"{file}: tile {i}") for i, given in enumerate(_list(data, "tile", file), 1)]
    splits = [_entry(Split, given, f"{file}: split {i}") for i, given in enumerate(_list(data, "split", file), 1)]
    seen: set[Any] = set()
    for keys in ([_keys(row) for row in rows], [[(place,) for place in split.on] for split in splits]):
        for key in (key for of_one in keys for key in of_one):
            if key in seen:
                raise ValueError(f"tiles: {file} has {' '.join(key)} twice, wanted it once")
            seen.add(key)
    return rows, splits


def _kinds(kind: str) -> list[str]:
    """A kind, and what a kind without a row takes in its place."""
    if kind.startswith(("large ", "masked ")):
        return [kind, kind.split(" ", 1)[1]]
    named = (kind, kind.removeprefix("scattered "), kind.replace("weight gradient", "convolution"))
    return list(dict.fromkeys((*named, named[1].replace("weight gradient", "convolution"))))


def _keys(row: Row) -> list[tuple[str, str, str]]:
    return [(row.kernel, place, dtype) for place in row.on for dtype in row.dtypes]


def _list(data: dict[str, Any], name: str, file: Path) -> list[Any]:
    found = data.get(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"tiles: {name} of {file} is {type(found).__name__}, wanted entries [[{name}]]")
    return found


def _entry(of: type, given: dict[str, Any], place: str) -> Any:
    """A Row or a Split of what the file has."""
    known = {field.name: field for field in fields(of)}
    missing = [name for name, field in known.items() if not hasattr(of, name) and name not in given]
    if (unknown := set(given) - set(known)) or missing:
        what = f"unknown {', '.join(sorted(unknown))}" if unknown else f"no {', '.join(missing)}"
        raise ValueError(f"tiles: {place} has {what}, wanted {', '.join(known)}")
    for name, value in given.items():
        if problem := _problem(name, value):
            raise ValueError(f"tiles: {name} of {place} is {value!r}, wanted {problem}")
    return of(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def _problem(name: str, value: Any) -> str:
    """What was wanted of a value; empty where it is right."""
    number = isinstance(value, int) and not isinstance(value, bool)
    power = number and value > 0 and value & (value - 1) == 0
    wanted, right = {
        "M": (f"a power of two from {_LEAST} on", power and value >= _LEAST),
        "K": (f"a power of two from {_LEAST} on", power and value >= _LEAST),
        "N": (f"a power of two from {_LEAST} on", power and value >= _LEAST),
        "warps": ("1, 2, 4, 8, 16 or 32", power and value <= 32),
        "stages": ("an integer from 1 to 8", number and 1 <= value <= 8),
        "small": ("an integer of at least 0", number and value >= 0),
        "least": ("an integer of at least 0", number and value >= 0),
        "programs": ("a positive integer", number and value > 0),
        "bytes": ("an integer of at least 0", number and value >= 0),
        "on": ("a list of names", _names(value)),
        "dtypes": (f"a list of {', '.join(DTYPES)}", _names(value) and set(value) <= set(DTYPES)),
        "kernel": ("a kind of kernel", isinstance(value, str) and bool(value)),
        "reason": ("words", isinstance(value, str) and bool(value.strip())),
    }[name]
    return "" if right else wanted


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) and v for v in value)
