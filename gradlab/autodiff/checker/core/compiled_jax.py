"""The compiled programs of a function and its pullback: one program for both where compiling dominates."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gradlab.autodiff.frameworks.side_jax import SIDE

Arrays = Sequence[Any]


class Programs:
    """Values and pullbacks of a function, compiled.

    For small arrays compiling takes most of the time: values and pullback are then one program for each shape, compiled
    with few optimisations. Low precisions are compiled as usual: unoptimised, XLA's float32 functions are less
    accurate.

    Attributes:
        small: the arrays are small, so compiling takes longer than running.
        joined: values and pullback are one program.
    """

    def __init__(
        self, flat: Callable[..., tuple[Any, ...]], pulled: Callable[..., tuple[Any, ...]], small: bool, joined: bool
    ) -> None:
        self._flat, self._pulled = flat, pulled
        self.small, self.joined = small, small and joined
        self._made: dict[tuple[str, bool], Callable[..., Any]] = {}
        self._zeros: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._separate: set[tuple[Any, ...]] = set()

    def values(self, *leaves: Any) -> tuple[Any, ...]:
        """The results of the function."""
        key = _shapes(leaves)
        if self.joined and key not in self._separate:
            if key not in self._zeros:
                # Shapes alone, or what the function raises.
                results = jax.eval_shape(self._flat, *leaves)
                self._zeros[key] = tuple(SIDE.put(np.zeros(y.shape), y.dtype) for y in results)
            try:
                return self._program("both", leaves)(leaves, self._zeros[key])[0]
            except Exception:
                # A pullback that raises must not make the function raise.
                self._separate.add(key)
        return self._program("values", leaves)(*leaves)

    def pullback(self, leaves: Arrays, cotangents: Arrays) -> tuple[Any, ...]:
        """The pullback of the cotangents."""
        key = _shapes(leaves)
        if self.joined and key in self._zeros and key not in self._separate:
            like = zip(cotangents, self._zeros[key], strict=True)
            given = tuple(c if c.dtype == y.dtype else SIDE.put(np.asarray(c), y.dtype) for c, y in like)
            return self._program("both", leaves)(tuple(leaves), given)[1]
        return self._program("pullback", leaves)(tuple(leaves), tuple(cotangents))

    def quick(self, fn: Callable[..., Any], low: bool = False) -> Callable[..., Any]:
        """Another function of the same arrays, compiled in the same way."""
        return SIDE.quick(fn, self.small and not low)

    def _program(self, name: str, leaves: Arrays) -> Callable[..., Any]:
        low = any(SIDE.dtype(leaf) in ("float32", "float16", "bfloat16") for leaf in leaves)
        if (name, low) not in self._made:
            body = {"both": self._both, "values": lambda *a: self._flat(*a), "pullback": lambda *a: self._pulled(*a)}
            self._made[name, low] = self.quick(body[name], low)
        return self._made[name, low]

    def _both(self, leaves: Arrays, cotangents: Arrays) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return self._flat(*leaves), self._pulled(leaves, cotangents)


def _shapes(leaves: Arrays) -> tuple[Any, ...]:
    # Without x64 results of the same leaves may have other dtypes.
    wide = str(jax.dtypes.canonicalize_dtype(np.float64))
    return wide, *((leaf.shape, str(leaf.dtype)) for leaf in leaves)
