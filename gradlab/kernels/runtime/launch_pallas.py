"""The launcher of Pallas kernels: the platform that a program is lowered for picks interpreter, Triton or Mosaic.

Pallas' own back end of Triton does not mask partial blocks, and the interpreter pads them with NaN, so kernels get full
blocks there: `pad` before, a slice after. Blocks are powers of two with at least 128 on the last axis where a compiler
requires that; interpreted, one block is the full array, because each step there costs as much as the full array.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jax.sharding import ManualAxisType

from gradlab.kernels.pallas_triton import backend_pallas
from gradlab.kernels.private.private_jax import pallas_of_any_size
from gradlab.kernels.runtime import interpret_pallas, taken
from gradlab.kernels.runtime.mesh_pallas import explicit_mesh, plain, typed, varying
from gradlab.kernels.runtime.partition_pallas import Splitting, auto_mesh, on_mesh, specs_of
from gradlab.kernels.runtime.traced_pallas import ByValue, traced

PLATFORMS = ("cpu", "cuda", "tpu")


def interpreted(platform: str) -> bool:
    """Whether kernels on this platform are interpreted: a step is expensive there, an element cheap."""
    return platform == "cpu"


def masks(platform: str) -> bool:
    """Whether blocks on this platform may reach past the end of an array: else it is padded to whole blocks before."""
    return platform == "cuda" and backend_pallas.masks()


def launch(call: Callable[..., Any], *operands: jax.Array) -> Any:
    """`call(platform, *operands)` for the platform that the surrounding program is lowered for.

    The platform is chosen when the program is lowered, not when it is traced: an array on a CPU beside a GPU is
    interpreted, and a program can be lowered for a machine that is not present. Code for a GPU or a TPU is traced only
    then, so `call` may close over sizes and settings, but not over arrays. Symbolic sizes, of `jax.export`, are for
    CPUs only, where a block is the full array.
    """
    for name, cell in zip(call.__code__.co_freevars, call.__closure__ or (), strict=True):
        if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(cell.cell_contents)):
            raise TypeError(f"launch: {call.__qualname__} holds {name}, wanted arrays among its operands alone")
    if _symbolic(operands):
        return one_operation({"cpu": functools.partial(_of_any_size, call)}, operands)
    return one_operation({name: functools.partial(call, name) for name in PLATFORMS}, operands)


def _symbolic(arrays: Sequence[Any]) -> bool:
    return any(jax.export.is_symbolic_dim(n) for x in arrays for n in x.shape)


def _of_any_size(call: Callable[..., Any], *operands: jax.Array) -> Any:
    # Pallas refuses blocks of symbolic size unless its export mode is on.
    with pallas_of_any_size():
        return call("cpu", *operands)


def one_piece(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` of arrays and settings as a single jax operation; under vmap it is the mapped `fn`.

    A custom_vjp's function must have no operation without operands, as the number of the platform is, or a constant:
    where a loop is differentiated twice, jax 0.10 works them out ahead, puts them before the arguments, and counts the
    arguments that the rule keeps without them. A residual is another one then.
    """

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        arrays, of_arrays = apart(args)
        return one_operation({"": of_arrays(fn)}, arrays)

    return call


def apart(args: Sequence[Any]) -> tuple[list[jax.Array], Callable[..., Callable[..., Any]]]:
    """The arrays in arguments, and what makes of a function of these arguments one of the arrays.

    The function's first arguments may be others, given before the arrays.
    """
    tree: Any
    leaves, tree = jax.tree.flatten(args)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}
    settings = [None if i in arrays else leaf for i, leaf in enumerate(leaves)]
    places = tuple(arrays)

    def of_arrays(fn: Callable[..., Any]) -> Callable[..., Any]:
        def rebuilt(*given: Any) -> Any:
            first, parts = given[: len(given) - len(places)], given[len(given) - len(places) :]
            there = dict(zip(places, parts, strict=True))
            return fn(*first, *tree.unflatten([there.get(i, x) for i, x in enumerate(settings)]))

        return rebuilt

    return list(arrays.values()), of_arrays


# A kernel's program as one operation. It is traced and lowered on its own, without the types of arrays that vary along
# a mesh's axes: Pallas' interpreter mixes those with constants.
_piece = Primitive("gradlab_launch")
_piece.multiple_results = True


class _Programs:
    """The programs of one operation, one for each platform or one for all (""): the first is traced at once.

    A program is cached as a jaxpr, because a function would keep alive the tracers that it closes over.

    Attributes:
        first: the program that the operation's types are taken from.
        splitting: how it is split over devices; None: each runs all of it.
    """

    def __init__(
        self, first: Any, branches: Mapping[str, ByValue], types: Sequence[Any], splitting: Splitting | None = None
    ) -> None:
        self.first, self._branches = first, branches
        self._traced = {next(iter(branches)): first}
        self._types, self._x64 = tuple(types), jax.config.jax_enable_x64  # type: ignore[attr-defined]
        self._run: dict[str, Callable[..., list[jax.Array]]] = {}
        self._maps: dict[Any, _Programs] = {}
        self.splitting = splitting

    def branches(self, names: Sequence[str]) -> dict[str, Callable[..., list[jax.Array]]]:
        """For each platform in `names` that has a program, the program as a function; one for all if there is one.

        Each is a `jax.jit`, so that it is lowered once for all its places in a program.
        """
        found = {}
        for name in ("", *names):
            if name in self._branches:
                if name not in self._run:
                    self._run[name] = jax.jit(jaxpr_as_fun(self._program(name)))
                found[name] = self._run[name]
        return found

    def _program(self, name: str) -> Any:
        # Several threads may lower at once: their traces are equal.
        if name not in self._traced:
            with jax.enable_x64(self._x64):
                self._traced[name], _ = traced(self._branches[name], self._types)
        return self._traced[name]

    def __repr__(self) -> str:
        return str(self.first)

    def mapped(self, axes: tuple[int | None, ...], size: int, types: Sequence[Any]) -> "_Programs":
        """The programs of the mapped operation."""
        if (axes, size) not in self._maps:
            branches = {
                name: ByValue(jax.vmap(functools.partial(self._one, name), axes, axis_size=size))
                for name in self._branches
            }
            first, _ = traced(next(iter(branches.values())), types)
            splitting = self.splitting and self.splitting.mapped(axes)
            self._maps[axes, size] = _Programs(first, branches, types, splitting)
        return self._maps[axes, size]

    def _one(self, name: str, *arrays: jax.Array) -> list[jax.Array]:
        return jaxpr_as_fun(self._program(name))(*arrays)

    def over_devices(self, ctx: Any) -> tuple[Callable[..., Any], Any] | None:
        """The operation on several devices and the context to lower it in; None where each runs all of it."""
        splitting = self.splitting or Splitting.none(self.first.in_avals, self.first.out_avals)
        mesh = explicit_mesh(ctx.avals_in)
        if mesh is not None:
            return splitting.over_explicit(mesh, ctx.avals_in, self._part), ctx
        mesh = auto_mesh(ctx)
        if self.splitting is None or mesh is None:
            return None
        without = ctx.replace(avals_in=self.first.in_avals, avals_out=self.first.out_avals)
        return splitting.over_auto(self.branches(())[""], self._part), on_mesh(without, mesh)

    def _part(self, *parts: jax.Array) -> list[jax.Array]:
        """The results of one device."""
        if self.splitting is None:
            return _bound(self, parts)
        fn, types = self.splitting.fn, tuple(plain(x) for x in parts)
        with jax.enable_x64(self._x64):
            first, _ = traced(fn, types)
        return _bound((_cached if fn.comparable else _made)(first, (("", fn),), types, None), parts)


def one_operation(
    branches: Mapping[str, Callable[..., Any]],
    arrays: Sequence[jax.Array],
    splitting: Splitting | None = None,
) -> Any:
    """Bind one operation on arrays; returns its results in the structure that the branches return."""
    programs = tuple((name, ByValue(fn)) for name, fn in branches.items())
    types = tuple(plain(x) for x in arrays)
    first, structure = traced(programs[0][1], types)
    comparable = all(fn.comparable for _, fn in programs)
    found = (_cached if comparable else _made)(first, programs, types, splitting)
    return jax.tree.unflatten(structure, _bound(found, arrays))


def _made(first: Any, programs: Any, types: tuple[Any, ...], splitting: Splitting | None) -> _Programs:
    return _Programs(first, dict(programs), types, splitting)


# Keyed by the first program too: equal launches share their other programs and their mapped forms.
_cached = functools.lru_cache(maxsize=1024)(_made)


def _bound(programs: _Programs, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    return _piece.bind(*varying(arrays), programs=programs)


@_piece.def_impl
def _run(*arrays: jax.Array, programs: _Programs) -> list[jax.Array]:
    devices = {d for x in arrays for d in x.devices()}
    if len(devices) > 1:
        return jax.jit(functools.partial(_piece.bind, programs=programs))(*arrays)
    (device,) = devices
    # jax calls the platform of CUDA devices gpu.
    name = {"gpu": "cuda", "cpu": taken.of_a_cpu}.get(device.platform, device.platform)
    (program,) = programs.branches([name]).values()
    return program(*arrays)


@_piece.def_abstract_eval
def _types(*operands: Any, programs: _Programs) -> list[Any]:
    mesh, splitting = explicit_mesh(operands), programs.splitting
    specs = None
    if mesh is not None and splitting is not None:
        specs = specs_of(splitting.rule.results, splitting.rule.typed_split(mesh, operands))
    return typed(specs, operands, programs.first.out_avals)


def _mapped(
    arrays: Sequence[jax.Array], axes: Sequence[Any], *, programs: _Programs
) -> tuple[list[jax.Array], list[int]]:
    axes = tuple(axis if isinstance(axis, int) else None for axis in axes)
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    results = _bound(programs.mapped(axes, size, [plain(x) for x in arrays]), arrays)
    return results, [0] * len(results)


def _kernels(program: Any) -> Iterator[str]:
    """The names of a program's kernels, from its name scopes."""
    for eqn in program.jaxpr.eqns:
        yield from re.findall(r"gradlab_(\w+?)_kernel", f"{eqn.source_info.name_stack} {eqn.params.get('name', '')}")
        if eqn.primitive is _piece:
            yield from _kernels(eqn.params["programs"].first)


def _lowered(ctx: Any, *operands: Any, programs: _Programs) -> Any:
    wanted = [taken.of_a_cpu if name == "cpu" else name for name in ctx.module_context.platforms]
    program = programs.first
    if _symbolic(program.in_avals) and any(name != "cpu" for name in wanted):
        shapes = ", ".join(t.str_short(short_dtypes=True) for t in program.in_avals)
        kernel = next(_kernels(program), "a kernel")
        raise ValueError(
            f"{kernel}: operands are {shapes}, wanted known sizes: a compiled kernel has blocks of fixed "
            "sizes, only jax.export for platforms=('cpu',) takes a symbolic one"
        )
    over_devices = programs.over_devices(ctx)
    if over_devices is not None:
        spread, there = over_devices
        return mlir.lower_fun(spread, multiple_results=True)(there, *operands)
    branches = programs.branches(wanted)
    # One platform, or one program for all; else the running program chooses, or jax reports the missing one.
    chosen: Callable[..., Any] = functools.partial(jax.lax.platform_dependent, **branches)
    if "" in branches or (len(wanted) == 1 and branches):
        (chosen,) = branches.values()
    without = ctx.replace(avals_in=program.in_avals, avals_out=program.out_avals)

    # jax names a function in its debugging information, one that is no plain function by the text of its whole program.
    def run(*arrays: jax.Array) -> Any:
        return chosen(*arrays)

    return mlir.lower_fun(run, multiple_results=True)(without, *operands)


batching.primitive_batchers[_piece] = _mapped
mlir.register_lowering(_piece, _lowered)


def pallas(
    kernel: Callable[..., None],
    platform: str,
    grid: Sequence[int],
    in_specs: Sequence[pl.BlockSpec],
    out_specs: Any,
    out_shape: Any,
    *,
    warps: int = 4,
    stages: int = 3,
    **options: Any,
) -> Callable[..., Any]:
    """`pl.pallas_call` with the platform's backend and the kernel's name on it.

    Interpreted, one program with full-array blocks is run directly on the arrays.
    """
    params: Any = None
    if platform == "cuda":
        # Without parameters Pallas takes Mosaic GPU, which has no jnp.dot.
        params = backend_pallas.parameters(warps, stages)
    if platform == "tpu":
        params = pltpu.CompilerParams(dimension_semantics=("parallel",) * len(grid))
    name = "gradlab_" + getattr(kernel, "func", kernel).__name__.strip("_")
    # Within `one_piece` nothing varies along an axis of a mesh.
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, manual_axis_type=ManualAxisType()), out_shape
    )
    call = pl.pallas_call(
        kernel,
        grid=tuple(grid),
        in_specs=list(in_specs),
        out_specs=out_specs,
        out_shape=shapes,
        interpret=interpreted(platform),
        compiler_params=params,
        name=name,
        **options,
    )
    return (
        _interpreted(kernel, name, grid, in_specs, out_specs, out_shape, call, **options)
        if interpreted(platform)
        else call
    )


def _interpreted(
    kernel: Callable[..., None],
    name: str,
    grid: Sequence[int],
    in_specs: Sequence[pl.BlockSpec],
    out_specs: Any,
    out_shape: Any,
    call: Callable[..., Any],
    input_output_aliases: Mapping[int, int] | None = None,
) -> Callable[..., Any]:
    """One program with full-array blocks, run directly; `call` for other grids."""
    results, structure = jax.tree.flatten(out_shape)
    specs = [*in_specs, *jax.tree.leaves(out_specs)]

    def run(*operands: jax.Array) -> Any:
        if not interpret_pallas.covers(grid, specs, [*operands, *results]):
            return call(*operands)
        with jax.named_scope(name):
            return jax.tree.unflatten(
                structure, interpret_pallas.run(kernel, operands, results, input_output_aliases or {})
            )

    return run


def block(platform: str, size: int, most: int, least: int = 16) -> int:
    """The full axis when interpreted; else the power of two that covers `size`, between `least` and `most`."""
    if interpreted(platform):
        return size
    return max(least, min(most, 1 << max(size - 1, 0).bit_length()))


def pad(x: jax.Array, *blocks: int, value: float = 0) -> jax.Array:
    """`x` with each axis padded to a multiple of its block, filled with `value`."""
    widths = [(0, -n % b) for n, b in zip(x.shape, blocks, strict=True)]
    return jnp.pad(x, widths, constant_values=value) if any(w for _, w in widths) else x


def accumulator(dtype: Any) -> Any:
    """The dtype that sums of `dtype` are carried in: float64 for float64, else float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def loop(steps: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """`fori_loop` inside a kernel; counts in int32, which is what a TPU indexes with also when x64 is on."""
    if steps == 1:
        # As when interpreted, where one block is the full array.
        return body(0 if interpret_pallas.alone() else jnp.int32(0), start)
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(steps), body, start)


def scalars(*values: Any, dtype: Any) -> jax.Array:
    """Run-time scalars as the [1 k] array that every backend takes."""
    return jnp.stack([jnp.asarray(v, dtype) for v in values]).reshape(1, -1)
