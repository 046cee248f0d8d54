"""What a row of the benchmark runs: a case of an op on one side, proven equal to the native, then timed beside it."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from gradlab.autodiff.arguments import dtype_name
from gradlab.autodiff.side import Side, as_tuple
from gradlab.kernels.spec import Case, Spec
from gradlab.profiling.bench_row import BOTH, FAILED, FORWARD, OK, WRONG, Row
from gradlab.profiling.native import native, natives
from gradlab.profiling.timing import in_turns


class Subject:
    """A case of an op on one side in one dtype, its inputs on the device."""

    def __init__(self, op: Spec, case: Case, side: Side, dtype: str) -> None:
        self.op, self.case, self.side, self.dtype = op, case, side, dtype
        self.native = native(side.name, op.name)
        self._wanted: dict[str, tuple[Any, ...]] = {}

    def row(self, mode: str, direction: str, budget: float) -> Row:
        """Prove, then time; an error becomes a row that says so, and the next row goes on."""
        blank = self.blank(mode, direction)
        try:
            with self.precise():
                hand = self.call("hand", mode, direction)
                wrong = self.difference(hand(), direction)
                if wrong:
                    return blank(verdict=WRONG, note=wrong)
                pairs = in_turns(hand, self.call("native", mode, direction), self.side.wait, budget)
        except Exception as error:
            return blank(verdict=FAILED, note=" ".join(f"{type(error).__name__}: {error}".split())[:300])
        return blank(verdict=OK, repeat=pairs.repeat, hand_seconds=pairs.first, native_seconds=pairs.second)

    def blank(self, mode: str, direction: str) -> Callable[..., Row]:
        """The row without what is measured."""
        ways = ("forward", "backward") if direction == BOTH else ("forward",)
        flops = self.op.flops(self.op.sizes(self.case), **self.op.options(self.case))
        moved = self.op.bytes(self.case, self.dtype)
        return functools.partial(
            Row,
            op=self.op.name,
            case=self.case.name,
            sizes=", ".join(f"{axis} {n}" for axis, n in self.case.sizes.items()),
            side=self.side.name,
            mode=mode,
            direction=direction,
            dtype=self.dtype,
            device=self.side.device(),
            native=self.native.label,
            interpreted=self.side.interpreted(),
            flops=sum(flops[way] for way in ways),
            bytes=sum(moved[way] for way in ways),
        )

    def call(self, implementation: str, mode: str, direction: str, wide: bool = False) -> Callable[[], Any]:
        """The "hand" or the "native" function on this subject's arrays: its result, or its pullback's gradients."""
        fn = self.side.op(self.op.name) if implementation == "hand" else self.native.fn
        fn = functools.partial(fn, **self.op.options(self.case))
        inputs, cotangents = self._wide if wide else self._arrays
        compiled = self.side.compiled if mode == "compiled" else lambda f: f
        if direction == FORWARD:
            return functools.partial(compiled(fn), *inputs)
        wrt = [i for i, a in enumerate(self.op.present(self.case)) if a.name in self.op.wrt]
        # torch compiles a function together with its backward; to jax the pullback is a function like any other.
        if self.side.name == "torch":
            pulled = self.side.pullback(compiled(fn), wrt)
        else:
            pulled = compiled(self.side.pullback(fn, wrt))
        return functools.partial(pulled, inputs, cotangents)

    @functools.cached_property
    def _arrays(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Inputs and cotangents, never zeros: a GPU is faster on those than on numbers."""
        sizes, rng = self.op.sizes(self.case), np.random.default_rng(1)
        cotangents = (np.asarray(rng.standard_normal(a.shape(sizes))) for a in self.op.outputs)
        return self._put(self.op.make(self.case).values()), self._put(cotangents)

    @property
    def _wide(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        inputs, cotangents = self._arrays
        widen = natives(self.side.name).widen
        return tuple(map(widen, inputs)), tuple(map(widen, cotangents))

    def _put(self, arrays: Iterable[np.ndarray]) -> tuple[Any, ...]:
        return tuple(self.side.put(a, self.dtype) for a in arrays)

    @contextmanager
    def precise(self) -> Iterator[None]:
        """Products in full precision, float64 where it is asked for."""
        with natives(self.side.name).precise(), self.side.double() if self.dtype == "float64" else nullcontext():
            yield

    def difference(self, hand: Any, direction: str) -> str:
        """What is wrong with the hand-written result beside the native's, in a line; nothing when all is well.

        The native runs in float32 where the dtype is half: it rounds at every step, and would be what fails here.
        """
        if direction not in self._wanted:
            self._wanted[direction] = as_tuple(self.call("native", "eager", direction, wide=True)())
        gradients = [f"d{a.name}" for a in self.op.present(self.case) if a.name in self.op.wrt]
        names = [a.name for a in self.op.outputs] if direction == FORWARD else gradients
        # Each of the two may be off by the tolerance.
        allowed = 2 * self.op.tolerance(self.case, self.dtype)
        for name, a, b in zip(names, as_tuple(hand), self._wanted[direction], strict=True):
            if tuple(a.shape) != tuple(b.shape) or dtype_name(a) != self.dtype:
                return f"{name} is {dtype_name(a)} {list(a.shape)}, wanted {self.dtype} {list(b.shape)}"
            # On the device: an array of gigabytes does not travel for this.
            error, scale = float(abs(a - b).max()), float(abs(b).max())
            if not error <= allowed * scale:
                return f"{name} is off by {error:.1e} where the largest is {scale:.1e}, allowed {allowed * scale:.1e}"
        return ""
