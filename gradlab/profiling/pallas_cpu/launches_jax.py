"""Ops on jax through their programs for CUDA on arrays of a CPU: each Pallas kernel is lowered and handed on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from gradlab.kernels.runtime import launch_pallas
from gradlab.kernels.runtime.lower_pallas import lowered
from gradlab.profiling.machine_code.launches_jax import triton_calls
from gradlab.profiling.pallas_cpu.launch import Launch

Run = Callable[[Launch, tuple[np.ndarray, ...]], tuple[np.ndarray, ...]]


@contextmanager
def cuda_programs(run: Run) -> Iterator[None]:
    """Within it arrays of a CPU go through what is written for a GPU: its blocks, its padding, its split reductions.

    Args:
        run: gets every launch of a kernel and its operands, and gives the results.
    """
    pallas, real = launch_pallas.pl, launch_pallas.pl.pallas_call

    def pallas_call(
        kernel: Callable[..., None],
        *,
        out_shape: Any,
        interpret: Any = False,
        input_output_aliases: Mapping[int, int] | None = None,
        **options: Any,
    ) -> Callable[..., Any]:
        aliases = dict(input_output_aliases or {})
        call = real(kernel, out_shape=out_shape, interpret=interpret, input_output_aliases=aliases, **options)
        return call if interpret else _handed_on(call, out_shape, aliases, run)

    # What was traced and compiled before has the kernels of a CPU in it, and what is within, none at all.
    jax.clear_caches()
    pallas.pallas_call = pallas_call
    try:
        with launch_pallas.taking("cuda"):
            yield
    finally:
        pallas.pallas_call = real
        jax.clear_caches()


def _handed_on(call: Callable[..., Any], out_shape: Any, aliases: dict[int, int], run: Run) -> Callable[..., Any]:
    """`call` lowered for CUDA and run by `run`, as an operation of the surrounding program."""
    results, structure = jax.tree.flatten(out_shape)
    types = tuple(jax.ShapeDtypeStruct(r.shape, r.dtype) for r in results)

    def called(*operands: jax.Array) -> Any:
        given = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
        program: Any = lowered(jax.jit(call), "cuda", *given)
        ((name, text, _, _, grid),) = triton_calls(program)
        launch = Launch(name, text, grid, aliases, tuple((t.shape, np.dtype(t.dtype)) for t in types))

        def host(*arrays: Any) -> tuple[np.ndarray, ...]:
            return run(launch, tuple(map(np.asarray, arrays)))

        made = jax.pure_callback(host, types, *operands, vmap_method="sequential")
        return jax.tree.unflatten(structure, made)

    return called
