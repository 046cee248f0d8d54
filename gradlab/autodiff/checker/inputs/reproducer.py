"""Writes a generated input as code that reproduces a finding."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.finding import Finding
from gradlab.autodiff.checker.core.subject import CheckSubject

# Up to LINE numbers the finding has a line of code, up to DATA the inputs as data.
LINE, DATA = 64, 4096


def with_reproducer(finding: Finding, s: CheckSubject) -> Finding:
    """The finding with the subject's inputs, and with a line that calls the function on them if they are few."""
    arrays = {n: a for n, a in zip(s.names, s.arrays, strict=True) if isinstance(a, np.ndarray)}
    count = sum(a.size for a in arrays.values())
    inputs: Mapping[str, Any] = {n: a.tolist() for n, a in arrays.items()} if count <= DATA else {}
    call = _call(s, arrays) if count <= LINE and len(arrays) == len(s.names) else ""
    return replace(finding, inputs=inputs, call=call)


def _call(s: CheckSubject, arrays: Mapping[str, np.ndarray]) -> str:
    flat = all(a is b for a, b in zip(s.args, s.leaves, strict=False)) and len(s.args) == len(s.leaves)
    written = {n: _literal(s.side.name, a, dtype) for (n, a), dtype in zip(arrays.items(), s.dtypes, strict=True)}
    if flat:
        return f"{s.op}({', '.join(written.values())})"
    return f"{s.op} with " + ", ".join(f"{n} = {text}" for n, text in written.items())


def _literal(side: str, a: np.ndarray, dtype: str) -> str:
    """An array as a framework expression; a constant array is written with full or zeros."""
    lead = "torch" if side == "torch" else "jnp"
    kind = f"dtype={lead}.{dtype if a.dtype.kind != 'f' else 'float64'}"
    if a.size > 1 and (a == a.flat[0]).all() and a.dtype.kind == "f":
        shape = tuple(a.shape)
        value = a.flat[0].item()
        return f"{lead}.full({shape}, {value!r}, {kind})" if value else f"{lead}.zeros({shape}, {kind})"
    return f"{lead}.{'tensor' if side == 'torch' else 'array'}({a.tolist()!r}, {kind})"
