"""Pallas kernels on arrays of a CPU, lowered for CUDA and handed on: the rule by which jax lowers them for CPUs."""

import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import pallas as pl
from jax.extend.core import jaxpr_as_fun

from gradlab.kernels.pallas_triton import backend_pallas
from gradlab.kernels.private import private_jax
from gradlab.kernels.runtime import taken
from gradlab.kernels.runtime.lower_pallas import lowered
from gradlab.profiling.machine_code.triton_ir_jax import located, triton_calls
from gradlab.profiling.pallas_cpu.launch import Launch, Shape

# Programs of a grid for which a block's place is worked out.
_PROGRAMS = 2**22


@dataclass(frozen=True, eq=False)
class Runner:
    """What launches are handed on to.

    Attributes:
        compiled: called with a launch when it is lowered; raises NotImplementedError for what it lacks.
        run: gets a launch and its operands, and gives the results.
        left: takes kernels that are interpreted as their program says, with the reason.
    """

    compiled: Callable[[Launch], Any]
    run: Callable[[Launch, tuple[np.ndarray, ...]], tuple[np.ndarray, ...]]
    left: MutableMapping[str, str]


_active: Runner | None = None
# Part of the key by which jax finds what it has traced and compiled: programs with these kernels in them and programs
# without never stand for each other.
_context = jax.make_user_context(None)


@contextmanager
def cuda_programs(runner: Runner) -> Iterator[None]:
    """Within it arrays of a CPU go through what is written for a GPU: its blocks, its padding, its split reductions."""
    global _active
    before, _active = _active, runner
    key = _context.get_global()
    try:
        with taken.taking("cuda"), located(), private_jax.lowered_on_cpus(pl.pallas_call_p, _lowered):
            _context.set_global("gradlab")
            yield
            _wait()
    finally:
        _context.set_global(key)
        _active = before


def _wait() -> None:
    """Launches may still be on their way; an error of one is told to whoever looks at its results."""
    for array in jax.live_arrays():
        try:
            array.block_until_ready()
        except Exception:
            continue


def _lowered(usual: Callable[..., Any], ctx: Any, *operands: Any, **params: Any) -> Any:
    """The rule: a kernel's program for a CPU calls back here, with the kernel's program for CUDA."""
    name = params["name"] or params["jaxpr"].debug_info.func_name
    try:
        launch = _launch(ctx.avals_in, params)
        if _active is not None:
            _active.compiled(launch)
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
        if not params["interpret"]:
            source = params["jaxpr"].debug_info.func_src_info
            raise ValueError(
                f"sanitize: kernel {source} has no program for CUDA that runs on a CPU ({reason}), wanted one that "
                "Pallas' Triton backend lowers"
            ) from error
        if _active is not None:
            _active.left.setdefault(name, reason)
        return usual(ctx, *operands, **params)

    def host(*arrays: Any) -> tuple[np.ndarray, ...]:
        if _active is None:
            raise RuntimeError(f"{name}: called after `cuda_on_cpu`, wanted a program that was compiled outside of it")
        return _active.run(launch, tuple(map(np.asarray, arrays)))

    return private_jax.called_on_host(ctx, host, operands)


def _launch(types: Sequence[Any], params: dict[str, Any]) -> Launch:
    """A launch of `pallas_call`'s operation with these parameters."""
    parameters, mapping, jaxpr = params["compiler_params"], params["grid_mapping"], params["jaxpr"]
    if parameters is None:
        parameters = backend_pallas.parameters(4, 3)
    if mapping.num_dynamic_grid_bounds or mapping.num_index_operands:
        raise NotImplementedError("its grid is dynamic, or it prefetches scalars")
    aliases = dict(params["input_output_aliases"])
    shapes = [tuple(block.array_aval.shape) for block in mapping.block_mappings]
    if isinstance(parameters, backend_pallas.CompilerParams):
        # It masks what a block has past the end of its array.
        spaces = shapes
        call = backend_pallas.call(params["name"], jaxpr, mapping, aliases, parameters, every=True)
    elif backend_pallas.pallas_triton and isinstance(parameters, backend_pallas.pallas_triton.CompilerParams):
        spaces = _spaces(mapping, aliases)
        call = _own(types, {**params, "compiler_params": parameters}, shapes, spaces)
    else:
        raise NotImplementedError(f"it is written for {type(parameters).__module__.split('.')[-2]}")
    mapped = list(mapping.vmapped_dims)
    own = [axis for axis in range(len(mapping.grid)) if axis not in mapped]
    return Launch(
        name=call.name,
        file=jaxpr.debug_info.func_filename or "",
        line=jaxpr.debug_info.func_lineno or 0,
        source=call.source,
        warps=call.warps,
        stages=call.stages,
        grid=call.grid,
        axes=tuple(mapping.grid) or (1,),
        order=(*own, *reversed(mapped)),
        names=tuple(name or f"argument {i}" for i, name in enumerate(jaxpr.debug_info.arg_names))[: len(shapes)],
        shapes=tuple(shapes),
        spaces=tuple(spaces),
        aliases=aliases,
        dtypes=tuple(np.dtype(block.array_aval.dtype) for block in mapping.block_mappings[mapping.num_inputs :]),
    )


def _own(
    types: Sequence[Any], params: dict[str, Any], shapes: Sequence[Shape], spaces: Sequence[Shape]
) -> backend_pallas.Call:
    """A launch as Pallas' own back end of Triton lowers it, for arrays with the shapes of their spaces."""
    mapping = params["grid_mapping"]
    blocks = [
        block if space == shape else block.replace(array_aval=block.array_aval.update(shape=space))
        for block, shape, space in zip(mapping.block_mappings, shapes, spaces, strict=True)
    ]
    for_cuda = {
        **params,
        "interpret": False,
        "debug": False,
        "grid_mapping": mapping if spaces == shapes else mapping.replace(block_mappings=tuple(blocks)),
        "out_avals": params["out_avals"]
        if spaces == shapes
        else tuple(block.array_aval for block in blocks[mapping.num_inputs :]),
    }
    given = [jax.ShapeDtypeStruct(space, t.dtype) for space, t in zip(spaces, types, strict=False)]
    program = lowered(jax.jit(lambda *arrays: pl.pallas_call_p.bind(*arrays, **for_cuda)), "cuda", *given)
    (call,) = triton_calls(program)
    return backend_pallas.Call(*call)


def _spaces(mapping: Any, aliases: dict[int, int]) -> list[Shape]:
    """The shape of the memory of each array; an operand and the result that overwrites it have the same."""
    spaces = [_space(block, mapping.grid) for block in mapping.block_mappings]
    for operand, result in aliases.items():
        both = operand, mapping.num_inputs + result
        spaces[both[0]] = spaces[both[1]] = tuple(map(max, *(spaces[i] for i in both)))
    return spaces


def _space(block: Any, grid: Sequence[int]) -> Shape:
    """The shape of the memory that a kernel gets for an array: along each axis but the first as far as blocks reach.

    Triton-backed Pallas masks nothing: where the last block of an axis is a part, its lanes past the axis are the next
    row's elements, within the array and wrong. With longer rows they are outside of it.
    """
    shape = tuple(block.array_aval.shape)
    sizes = [_size(one) for one in block.block_shape]
    last = _last_blocks(block.index_map_jaxpr, grid, len(sizes))
    reached = [
        n if not axis or size is None or i is None else max(n, (i + 1) * size)
        for axis, (n, size, i) in enumerate(zip(shape, sizes, last, strict=True))
    ]
    return tuple(reached) if math.prod(reached) else shape


def _size(one: Any) -> int | None:
    """A block's size along an axis; None of one that is indexed by elements."""
    if one is None or isinstance(one, pl.Squeezed):
        return 1
    if isinstance(one, pl.Blocked):
        return int(one.block_size)
    return one if isinstance(one, int) else None


def _last_blocks(index_map: Any, grid: Sequence[int], axes: int) -> list[int | None]:
    """The largest index along each axis of an array's blocks over a grid; None where it is not known."""
    programs, inner = math.prod(grid), index_map.jaxpr
    trivial = {id(v): n - 1 for v, n in zip(inner.invars, grid, strict=False)}
    if all(id(v) in trivial or hasattr(v, "val") for v in inner.outvars):
        return [trivial[id(v)] if id(v) in trivial else int(v.val) for v in inner.outvars]
    if not 0 < programs <= _PROGRAMS:
        return [None] * axes
    places = [np.asarray(i.ravel(), np.int32) for i in np.indices(grid)]
    every = jax.jit(jax.vmap(jaxpr_as_fun(index_map)))(*places)
    return [int(np.max(i)) for i in every]
