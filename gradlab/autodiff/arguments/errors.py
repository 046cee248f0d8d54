"""Errors of one line: op, argument, what came, what was wanted. Framework-free."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

FLOATS = ("float64", "float32", "float16", "bfloat16")


def dtype_name(array: Any) -> str:
    """The dtype of a torch tensor or an array, without its framework's name."""
    return str(array.dtype).removeprefix("torch.")


def refuse(op: str, argument: str, came: Any, wanted: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise `error` in the package's one-line form."""
    raise error(f"{op}: {argument} is {came}, wanted {wanted}")


def want_rank(op: str, argument: str, array: Any, wanted: str, ranks: Collection[int]) -> None:
    """Refuse an array whose number of axes is not among `ranks`; `wanted` shows the shape with axis letters."""
    if array.ndim not in ranks:
        refuse(op, f"{argument} of shape {list(array.shape)}", f"{array.ndim}-dimensional", wanted)


def want_size(op: str, argument: str, array: Any, axis: int, letter: str, size: int, because: str) -> None:
    """Refuse an array whose `axis` is not `size` long."""
    if array.shape[axis] != size:
        refuse(
            op,
            f"{argument} of shape {list(array.shape)}",
            f"{letter} = {array.shape[axis]}",
            f"{letter} = {size} {because}",
        )


def want_broadcast(op: str, argument: str, array: Any, shape: Sequence[int], like: str) -> None:
    """Refuse an array that does not broadcast to `shape`, which is that of the argument `like`."""
    trailing = zip(reversed(array.shape), reversed(shape), strict=False)
    if array.ndim > len(shape) or any(a not in (1, b) for a, b in trailing):
        refuse(op, f"shape of {argument}", list(array.shape), f"one that broadcasts to {list(shape)} of {like}")


def want_floats(op: str, arrays: Mapping[str, Any]) -> None:
    """Refuse arrays that are not all of one of the lab's floating dtypes."""
    first, wanted = next(iter(arrays.items()))
    for argument, array in arrays.items():
        if array is wanted or array.dtype != wanted.dtype:
            name = dtype_name(array)
            if name not in FLOATS:
                refuse(op, f"dtype of {argument}", name, f"one of {', '.join(FLOATS)}", TypeError)
            if array.dtype != wanted.dtype:
                refuse(op, f"dtype of {argument}", name, f"{dtype_name(wanted)} like {first}", TypeError)


def want_choice(op: str, argument: str, came: Any, choices: Collection[Any]) -> None:
    """Refuse a value that is not among `choices`."""
    if came not in choices:
        refuse(op, argument, repr(came), f"one of {', '.join(map(repr, choices))}")


def want_bool(op: str, argument: str, came: Any) -> None:
    """Refuse what is not True or False: a number that counts as true is a mistake in the order of arguments."""
    if not isinstance(came, bool):
        refuse(op, argument, repr(came), "True or False", TypeError)
