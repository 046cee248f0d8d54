"""A case of an op on one side with fresh random inputs: its implementations as calls, each checked against native."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from gradlab.autodiff.arguments.errors import dtype_name
from gradlab.autodiff.frameworks.side import Side, as_tuple
from gradlab.kernels.spec import Case, Spec
from gradlab.profiling.bench import draw
from gradlab.profiling.bench.peers import peers
from gradlab.profiling.bench.row import BACKWARD, BOTH, COMPILED, FORWARD, GRADLAB, NATIVE
from gradlab.profiling.native.native import Native, native, natives


class BenchSubject:
    """A case of an op on one side in one dtype; the inputs follow from `seed`, small ones are equal on both sides."""

    def __init__(self, op: Spec, case: Case, side: Side, dtype: str, seed: int) -> None:
        self.op, self.case, self.side, self.dtype, self.seed = op, case, side, dtype, seed
        self.at = op.at(case)
        hand_written = Native(f"gradlab.{side.name}", side.op(op.name))
        self.implementations: dict[str, Native] = {
            GRADLAB: hand_written,
            NATIVE: native(side.name, op.name),
            **peers(side.name, op.name, side.device()),
        }
        self._wanted: dict[str, tuple[Any, ...]] = {}

    @property
    def wrt(self) -> list[int]:
        """The indices of the inputs that have a gradient."""
        return list(self.at.wrt)

    def work(self, direction: str) -> tuple[int, int]:
        """Least FLOPs and bytes of a direction."""
        passes = {FORWARD: ("forward",), BACKWARD: ("backward",), BOTH: ("forward", "backward")}[direction]
        flops, moved = self.at.flops(), self.at.bytes(self.dtype)
        return sum(flops[name] for name in passes), sum(moved[name] for name in passes)

    def function(self, implementation: str) -> Callable[..., Any]:
        """An implementation as a function of the inputs alone."""
        return self.at.bind(self.implementations[implementation].fn)

    def call(self, implementation: str, mode: str, direction: str, wide: bool = False) -> Callable[[], Any]:
        """An implementation on this subject's arrays: its result for the forward, its gradients for the other
        directions."""
        fn = self.function(implementation)
        inputs, cotangents = self._wide if wide else self.arrays
        compiled = self.side.compiled if mode == COMPILED else lambda f: f
        if direction == FORWARD:
            return functools.partial(compiled(fn), *inputs)
        if direction == BACKWARD:
            return self.side.backward_alone(fn, self.wrt, inputs, cotangents, mode == COMPILED)
        # torch compiles a function together with its backward; to jax the pullback is a function like any other.
        if self.side.name == "torch":
            pulled = self.side.pullback(compiled(fn), self.wrt)
        else:
            pulled = compiled(self.side.pullback(fn, self.wrt))
        return functools.partial(pulled, inputs, cotangents)

    @functools.cached_property
    def arrays(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Inputs and cotangents, never zeros: a GPU is faster on zeros."""
        drawn = draw.inputs(self.at, self.side, self.seed)
        return self._put(drawn), self._put(draw.cotangents(self.at, self.side, self.seed))

    @property
    def _wide(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        inputs, cotangents = self.arrays
        widen = natives(self.side.name).widen
        return tuple(map(widen, inputs)), tuple(map(widen, cotangents))

    def _put(self, arrays: list[Any]) -> tuple[Any, ...]:
        put = []
        # One by one, so that each wide array is freed before the next is converted.
        while arrays:
            a = arrays.pop(0)
            put.append(
                self.side.cast(a, self.dtype) if self.side.is_array(a) else self.side.put(np.asarray(a), self.dtype)
            )
        return tuple(put)

    @contextmanager
    def precise(self) -> Iterator[None]:
        """Products in full precision, x64 if the dtype is float64."""
        with natives(self.side.name).precise(), self.side.double() if self.dtype == "float64" else nullcontext():
            yield

    def difference(self, value: Any, direction: str) -> str:
        """The difference between a result and native's beyond the tolerance, in a line; empty if there is none.

        For half dtypes native runs in float32, as its own rounding at every step would exceed the tolerance.
        """
        kind = FORWARD if direction == FORWARD else BACKWARD
        if kind not in self._wanted:
            self._wanted[kind] = as_tuple(self.call(NATIVE, "eager", FORWARD if kind == FORWARD else BOTH, wide=True)())
        gradients = [f"d{self.at.inputs[i].name}" for i in self.at.wrt]
        names = [a.name for a in self.at.results] if kind == FORWARD else gradients
        # Each of the two may be off by the tolerance.
        allowed = 2 * self.at.tolerance(self.dtype)
        for name, a, b in zip(names, as_tuple(value), self._wanted[kind], strict=True):
            if tuple(a.shape) != tuple(b.shape) or dtype_name(a) != self.dtype:
                return f"{name} is {dtype_name(a)} {list(a.shape)}, wanted {self.dtype} {list(b.shape)}"
            # On the device: an array of gigabytes does not travel for this.
            error, scale = float(abs(a - b).max()), float(abs(b).max())
            if not error <= allowed * scale:
                return f"{name} is off by {error:.1e} where the largest is {scale:.1e}, allowed {allowed * scale:.1e}"
        return ""
