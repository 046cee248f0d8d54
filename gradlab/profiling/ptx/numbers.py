"""PTX types as NumPy's: what a register's bits mean, and bits of what was computed."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
# Registers by their declared type.
RAW: dict[str, Any] = {"pred": np.bool_, "b8": np.uint8, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64}
RAW |= {
    f"{letter}{bits}": RAW[f"b{bits}"] for letter in "suf" for bits in (8, 16, 32, 64) if letter + str(bits) != "f8"
}
# How a type's values are computed with. bfloat16 has no type of NumPy: float32, rounded when written.
_MEANT: dict[str, Any] = {
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"{letter}{bits}": np.dtype(f"u{bits // 8}") for letter in "ub" for bits in (8, 16, 32, 64)},
    "f16": np.dtype("f2"),
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "tf32": np.dtype("f4"),
}
BITS = {"pred": 1, "bf16": 16, "tf32": 32, "f16x2": 32, "bf16x2": 32, "f32x2": 64, "b128": 128}
BITS |= {name: dtype.itemsize * 8 for name, dtype in _MEANT.items()}


def is_float(kind: str) -> bool:
    """Whether a type is of floating-point numbers."""
    return kind in ("f16", "bf16", "f32", "f64", "tf32")


def meaning(kind: str) -> np.dtype:
    """The dtype that values of a type are computed in; its own width but for bfloat16, which is float32."""
    return np.dtype("f4") if kind == "bf16" else np.dtype("?") if kind == "pred" else _MEANT[kind]


def from_bf16(bits: Any) -> Array:
    """float32 of bfloat16's bits."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Array) -> Array:
    """bfloat16's bits of float32, rounded to nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def reader(raw: Array, kind: str) -> Callable[[Any], Array]:
    """What gives the values of lanes: `raw` is a register's bits, `kind` how they are read."""
    if kind == "pred" or raw.dtype == np.bool_:
        return raw.__getitem__
    if kind == "bf16":
        return lambda lanes: from_bf16(raw[lanes])
    dtype = _MEANT[kind]
    if dtype.itemsize == raw.dtype.itemsize:
        return raw.view(dtype).__getitem__
    # A register may be wider than what is read of it.
    narrow = np.dtype(f"u{dtype.itemsize}")
    return lambda lanes: raw[lanes].astype(narrow).view(dtype)


def writer(raw: Array, kind: str) -> Callable[[Any, Any], None]:
    """What writes values of a type into lanes of a register; signed integers are extended to its width."""
    if kind == "pred" or raw.dtype == np.bool_:
        return raw.__setitem__
    if kind == "bf16":

        def write_bf16(lanes: Any, values: Any) -> None:
            raw[lanes] = to_bf16(np.asarray(values))

        return write_bf16
    dtype = _MEANT[kind]
    if dtype.itemsize == raw.dtype.itemsize:
        return raw.view(dtype).__setitem__
    if dtype.kind == "f":

        def write_narrow_float(lanes: Any, values: Any) -> None:
            raw[lanes] = np.ascontiguousarray(values, dtype).view(f"u{dtype.itemsize}")

        return write_narrow_float
    wide = np.dtype(f"{dtype.kind}{raw.dtype.itemsize}")

    def write(lanes: Any, values: Any) -> None:
        raw[lanes] = np.asarray(values).astype(dtype).astype(wide).view(raw.dtype)

    return write


def immediate(text: str, kind: str) -> Any:
    """A constant as a NumPy scalar of the type's meaning."""
    bits: Any
    if text[:2] in ("0f", "0F"):
        bits = np.uint32(int(text[2:], 16))
        return meaning(kind).type(bits.view(np.float32)) if is_float(kind) else bits
    if text[:2] in ("0d", "0D"):
        bits = np.uint64(int(text[2:], 16))
        return bits.view(np.float64) if is_float(kind) else bits
    if kind == "pred":
        return np.bool_(int(text))
    if is_float(kind) and kind != "bf16":
        # An integer where a float is meant gives its bits: f16 has no constants of its own.
        width = BITS[kind]
        return np.dtype(f"u{width // 8}").type(int(text, 0) % 2**width).view(meaning(kind))
    if kind == "bf16":
        return from_bf16(np.uint16(int(text, 0) % 2**16))
    dtype = _MEANT[kind]
    value = int(text.rstrip("U"), 0) % 2 ** (8 * dtype.itemsize)
    return np.dtype(f"u{dtype.itemsize}").type(value).view(dtype)
