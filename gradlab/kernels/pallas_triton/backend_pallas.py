"""Which compiler takes Pallas kernels on a GPU: Pallas' own back end of Triton, or this package's, through jax-triton.

Pallas' own is deprecated from jax 0.11 on. This one is found by Pallas through `jax.extend.pallas`, by the type of a
kernel's compiler parameters. `GRADLAB_PALLAS=jax-triton` chooses it, `GRADLAB_PALLAS=triton` the other; where
jax has no other, this one is taken without it.
"""

import importlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.pallas import register_lowering_rule
from jax.interpreters import mlir

from gradlab.kernels.pallas_triton.written_pallas import Shape, written

try:
    from jax.experimental.pallas import triton as _triton
except ImportError:
    _triton = None
# Pallas' own back end, None in a jax without it.
pallas_triton: Any = _triton

# What a program is compiled for where there is no GPU.
_CAPABILITY = 90


@dataclass(frozen=True)
class CompilerParams:
    """The parameters of this back end: warps of a program, and stages of a pipelined loop."""

    warps: int = 4
    stages: int = 3


class Call(NamedTuple):
    """A launch as a lowered program has it: the kernel's name, its Triton IR, warps, stages and grid."""

    name: str
    source: str
    warps: int
    stages: int
    grid: Shape


def chosen() -> str:
    """The back end of GPUs: "triton", which is Pallas' own, or "jax-triton".

    Raises:
        ValueError: the environment names another, or one that this jax does not have.
    """
    there = ("triton", "jax-triton") if pallas_triton else ("jax-triton",)
    name = os.environ.get("GRADLAB_PALLAS", there[0])
    if name not in there:
        raise ValueError(f"gradlab: GRADLAB_PALLAS is {name!r}, wanted {' or '.join(there)}")
    return name


def parameters(warps: int, stages: int) -> Any:
    """What tells `pallas_call` on a GPU its back end, and that the kernel's warps and stages."""
    if chosen() == "triton":
        return pallas_triton.CompilerParams(num_warps=warps, num_stages=stages)
    return CompilerParams(warps, stages)


def masks() -> bool:
    """Whether a kernel's blocks may reach past the end of an array."""
    return chosen() == "jax-triton"


_noted: ContextVar[list[Call] | None] = ContextVar("gradlab_pallas_triton", default=None)


@contextmanager
def noting() -> Iterator[list[Call]]:
    """Within it programs that are lowered for a GPU have no kernels: their launches are noted; for this thread."""
    calls: list[Call] = []
    token = _noted.set(calls)
    try:
        yield calls
    finally:
        _noted.reset(token)


def call(
    name: str | None, jaxpr: Any, mapping: Any, aliases: Mapping[int, int], given: CompilerParams, every: bool = False
) -> Call:
    """The launch of a `pallas_call`'s kernel; with `every` all results are parameters of it.

    Raises:
        NotImplementedError: something in the kernel has no counterpart in Triton's language.
    """
    made: Any = importlib.import_module("gradlab.kernels.pallas_triton.made_triton")
    kernel = written(name or jaxpr.debug_info.func_name, jaxpr, mapping, aliases, every)
    source = made.ir_of(kernel.name, kernel.text, kernel.places, kernel.parameters, given.warps, given.stages)
    return Call(kernel.name, source, given.warps, given.stages, kernel.grid)


def _lowered(
    ctx: Any,
    *operands: Any,
    compiler_params: CompilerParams,
    jaxpr: Any,
    grid_mapping: Any,
    input_output_aliases: Any,
    name: str | None,
    **params: Any,
) -> Any:
    """The rule by which Pallas lowers a kernel with these parameters for a GPU."""
    aliases, calls = dict(input_output_aliases), _noted.get()
    results = [jax.ShapeDtypeStruct(t.shape, t.dtype) for t in ctx.avals_out]

    def nothing(*arrays: jax.Array) -> list[jax.Array]:
        return [jnp.zeros(t.shape, t.dtype) for t in results]

    if calls is not None:
        calls.append(call(name, jaxpr, grid_mapping, aliases, compiler_params))
        return mlir.lower_fun(nothing, multiple_results=True)(ctx, *operands)
    kernel = written(name or jaxpr.debug_info.func_name, jaxpr, grid_mapping, aliases)
    made: Any = importlib.import_module("gradlab.kernels.pallas_triton.made_triton")
    triton_call = _triton_call()

    def run(*arrays: jax.Array) -> Any:
        with warnings.catch_warnings():
            # It names references as the way to overwrite an operand, which a program that is lowered has none of.
            warnings.filterwarnings("ignore", "input_output_aliases is deprecated", DeprecationWarning)
            return triton_call(
                *arrays,
                kernel=made.kernel_of(kernel.name, kernel.text),
                out_type=results,
                grid=kernel.grid,
                name=kernel.name,
                num_warps=compiler_params.warps,
                num_stages=compiler_params.stages,
                compute_capability=None if jax.default_backend() == "gpu" else _CAPABILITY,
                input_output_aliases=aliases,
            )

    return mlir.lower_fun(run, multiple_results=True)(ctx, *operands)


def _triton_call() -> Any:
    try:
        return importlib.import_module("jax_triton").triton_call
    except ImportError as error:
        raise ModuleNotFoundError(
            f"gradlab: jax-triton is not there ({error}), wanted version 0.4 or later, which launches the kernels of "
            "jax's side on a GPU: pip install 'gradlab[jax-triton]'"
        ) from error


register_lowering_rule(CompilerParams, _lowered, "gpu")
