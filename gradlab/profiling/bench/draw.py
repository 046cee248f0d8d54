"""Random inputs: small ones drawn by NumPy, the same numbers on both sides; large ones on the GPU that is to read them.

A Spec draws from a NumPy generator. NumPy takes ten seconds for half a billion normals, and as many bytes cross the bus
in float64; the generator here draws arrays beyond a size in float32 on the device.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gradlab.autodiff.frameworks.side import Side
from gradlab.kernels.spec import OpCase, normal

# Elements from which an array for CUDA is drawn there.
LARGE = 2**22

Shape = int | Sequence[int]


class Drawer(Protocol):
    """What `draw_torch` and `draw_jax` make: arrays on the default device, float32 or the side's integers."""

    def normal(self, shape: tuple[int, ...]) -> Any: ...

    def uniform(self, shape: tuple[int, ...]) -> Any:
        """From 0 to 1."""
        ...


class Generator:
    """As much of a NumPy generator as the draws of Specs take, with large arrays of floats on a device."""

    def __init__(self, host: np.random.Generator, drawer: Drawer) -> None:
        self._host, self._drawer = host, drawer

    def __getattr__(self, name: str) -> Any:
        # Classes, permutations and probabilities come from NumPy: they are small beside the floats.
        return getattr(self._host, name)

    def standard_normal(self, shape: Shape = ()) -> Any:
        wanted = _shape(shape)
        return self._host.standard_normal(wanted) if self._small(wanted) else self._drawer.normal(wanted)

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: Shape = ()) -> Any:
        wanted = _shape(shape)
        if self._small(wanted):
            return self._host.uniform(low, high, wanted)
        return low + (high - low) * self._drawer.uniform(wanted)

    def _small(self, shape: tuple[int, ...]) -> bool:
        return math.prod(shape) < LARGE


def inputs(at: OpCase, side: Side, seed: int) -> list[Any]:
    """The case's inputs, of NumPy or of the side, in the signature's order."""
    # Cases for finite differences are small, and NumPy keeps them away from kinks.
    case = at.case
    if not _on_cuda(side) or case.use == "check":
        return list(at.make(seed).values())
    rng = Generator(np.random.default_rng([seed, *case.sizes.values()]), _drawer(side, seed))
    return list((at.spec.draw or normal)(rng, case, at.spec).values())  # type: ignore[arg-type]


def cotangents(at: OpCase, side: Side, seed: int) -> list[Any]:
    """A cotangent for each of the case's results, standard normal."""
    host = np.random.default_rng([seed, 1])
    rng: Any = Generator(host, _drawer(side, seed + 1)) if _on_cuda(side) else host
    return [rng.standard_normal(shape) for shape in at.shapes()[1]]


def _on_cuda(side: Side) -> bool:
    return side.device() == "cuda"


def _drawer(side: Side, seed: int) -> Drawer:
    made: Drawer = importlib.import_module(f"gradlab.profiling.bench.draw_{side.name}").Drawer(seed)
    return made


def _shape(shape: Shape) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)
