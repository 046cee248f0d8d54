"""A Pallas kernel written anew in Triton's language: from what `pallas_call` has traced of it, to Python text.

The dialect is the lab's own: blocks are cut by index maps and read by numbers and slices, loops are `fori_loop`,
products are of two matrices. What a block has past the end of its array is masked. Sizes and strides stand in the text.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.extend.core import Literal

from gradlab.kernels.pallas_triton.operations_pallas import Shape, Value, constant, expression

_INT32 = jnp.dtype("int32")
# Programs along the second and third axis of a grid.
_MOST = 2**16 - 1


class Written(NamedTuple):
    """A kernel in Triton's language; hashable.

    Attributes:
        name: the kernel's.
        text: a function of that name.
        places: for each line of the text the file and the line that it was made of, or None.
        parameters: name and dtype of each: pointers to the operands and to those results that overwrite none of them.
        grid: programs along Triton's axes.
    """

    name: str
    text: str
    places: tuple[tuple[str, int] | None, ...]
    parameters: tuple[tuple[str, str], ...]
    grid: Shape


class _Axis(NamedTuple):
    """An axis of an array: its length, elements to the next along it, the block's length (None: one number, which the
    kernel does not see), where the program's block begins, and whether the last block is a part."""

    size: int
    stride: int
    block: int | None
    start: str
    partial: bool


class _Ref(NamedTuple):
    """What a kernel reads and writes: the pointer to a program's block, and the axes of its array."""

    pointer: str
    axes: tuple[_Axis, ...]
    dtype: Any
    wide: bool


def written(name: str, jaxpr: Any, mapping: Any, aliases: Mapping[int, int], every: bool = False) -> Written:
    """The kernel of a `pallas_call`.

    Args:
        name: the kernel's.
        jaxpr: its body, a function of refs.
        mapping: the grid and how the arrays are cut.
        aliases: place of an operand -> place of the result that overwrites it.
        every: all results are parameters, also those that overwrite an operand.

    Raises:
        NotImplementedError: something in it has no counterpart here.
    """
    if mapping.num_dynamic_grid_bounds or mapping.num_index_operands:
        raise NotImplementedError("a dynamic grid, or scalars read ahead, have no counterpart in what is written")
    if len(jaxpr.invars) != len(mapping.block_mappings):
        raise NotImplementedError("scratch memory has no counterpart in what is written")
    return _Writer(name, jaxpr, mapping, aliases, every).made()


class _Writer:
    """One kernel on its way to text."""

    def __init__(self, name: str, jaxpr: Any, mapping: Any, aliases: Mapping[int, int], every: bool) -> None:
        self._name, self._jaxpr, self._mapping = name, jaxpr, mapping
        self._overwritten = {mapping.num_inputs + result: operand for operand, result in aliases.items()}
        self._every = every
        self._file = jaxpr.debug_info.func_filename or ""
        self._lines: list[str] = []
        self._places: list[tuple[str, int] | None] = []
        # The kernel's own line, until an operation has one.
        self._place = (self._file, jaxpr.debug_info.func_lineno or 0) if self._file else None
        self._indent = 0
        self._count = itertools.count()
        self._grid, self._programs = _grid(mapping)
        own = [i for i in range(len(mapping.grid)) if i not in mapping.vmapped_dims]
        self._own = [self._programs[i] for i in own]

    def made(self) -> Written:
        parameters: list[tuple[str, str]] = []
        pointers: list[str] = []
        for i, (block, given) in enumerate(zip(self._mapping.block_mappings, self._names_of_parameters(), strict=True)):
            overwritten = self._overwritten.get(i)
            if overwritten is None or self._every:
                parameters.append((given, jnp.dtype(block.array_aval.dtype).name))
            pointers.append(given if overwritten is None else pointers[overwritten])
        self._emit(f"def {self._name}({', '.join(name for name, _ in parameters)}):")
        self._indent = 1
        for name, text in self._programs_text():
            self._emit(f"{name} = {text}")
        refs = [
            self._ref(pointer, block) for pointer, block in zip(pointers, self._mapping.block_mappings, strict=True)
        ]
        self._run(self._jaxpr, [], refs)
        self._emit("return")
        return Written(
            self._name, "\n".join(self._lines) + "\n", tuple(self._places), tuple(parameters), self._grid or (1,)
        )

    def _names_of_parameters(self) -> Iterator[str]:
        """Names that are told apart from each other and from what is written."""
        for i, name in enumerate(self._jaxpr.debug_info.arg_names or [""] * len(self._jaxpr.invars)):
            kept = "".join(c if c.isalnum() else "_" for c in name or "argument").strip("_")
            yield f"{kept}_{i}"

    def _programs_text(self) -> Iterator[tuple[str, str]]:
        """Where a program stands along the kernel's own axes and the mapped ones."""
        order = _order(self._mapping)
        if len(self._grid) == len(order):
            for axis, i in enumerate(order):
                yield self._programs[i], f"tl.program_id({axis})"
            return
        yield "rest", "tl.program_id(0)"
        for i in order:
            yield self._programs[i], f"rest % {self._mapping.grid[i]}"
            yield "rest", f"rest // {self._mapping.grid[i]}"

    def _ref(self, pointer: str, block: Any) -> _Ref:
        shape, dtype = tuple(block.array_aval.shape), block.array_aval.dtype
        if jnp.dtype(dtype) == jnp.bool_:
            raise NotImplementedError("an array of bool has no counterpart in what is written")
        closed = block.index_map_jaxpr
        programs = [Value(p, (), _INT32) for p in self._programs]
        places = self._run(closed.jaxpr, closed.consts, programs)
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        wide = math.prod(shape) >= 2**31
        axes = []
        for n, stride, cut, place in zip(shape, strides, block.block_shape, places, strict=True):
            length, step = _cut(cut)
            at = _bare(place.text)
            # An axis of a single block is partial only where the block is longer than the axis.
            partial = length > n if at == "0" else n % length != 0
            start = at if step == 1 or at == "0" else f"{at} * {step}"
            axes.append(_Axis(n, stride, None if _squeezed(cut) else length, start, partial))
        base = self._fresh("at")
        terms = [self._times(axis.start, axis.stride, wide) for axis in axes if axis.size > 1 and axis.start != "0"]
        self._emit(f"{base} = {' + '.join([pointer, *terms])}")
        return _Ref(base, tuple(axes), dtype, wide)

    def _times(self, place: str, stride: int, wide: bool) -> str:
        if place.isdecimal():
            return str(int(place) * stride)
        text = f"({place}).to(tl.int64)" if wide else f"({place})" if any(c in place for c in "+*") else place
        return text if stride == 1 else f"{text} * {stride}"

    def _fresh(self, kind: str = "v") -> str:
        return f"{kind}{next(self._count)}"

    def _emit(self, text: str) -> None:
        self._lines.append("    " * self._indent + text)
        self._places.append(self._place)

    def _run(self, jaxpr: Any, consts: Sequence[Any], given: Sequence[Any]) -> list[Value]:
        """The results of a jaxpr, whose operations are written."""
        env: dict[Any, Any] = dict(zip(jaxpr.invars, given, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            if jnp.shape(const):
                raise NotImplementedError("a constant array has no counterpart in what is written")
            env[var] = Value(constant(const, var.aval.dtype), (), var.aval.dtype)

        def read(atom: Any) -> Any:
            if isinstance(atom, Literal):
                aval: Any = atom.aval
                return Value(constant(atom.val, aval.dtype), (), aval.dtype)
            return env[atom]

        for eqn in jaxpr.eqns:
            self._place = self._place_of(eqn) or self._place
            results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _place_of(self, eqn: Any) -> tuple[str, int] | None:
        traceback = eqn.source_info.traceback
        frames = traceback.frames if traceback is not None else []
        return next(((f.file_name, f.line_num) for f in frames if f.file_name == self._file), None)

    def _equation(self, eqn: Any, operands: list[Any]) -> list[Any]:
        name, params = eqn.primitive.name, eqn.params
        inner = params.get("jaxpr") or params.get("call_jaxpr")
        if name in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"):
            return self._run(inner.jaxpr, inner.consts, operands)
        if name == "program_id":
            return [Value(self._own[params["axis"]], (), _INT32)]
        if name == "while":
            return self._loop(params, operands)
        if name in ("get", "swap", "masked_load", "masked_swap"):
            return self._access(name, eqn, operands)
        (out,) = eqn.outvars
        result = Value(self._fresh(), tuple(out.aval.shape), out.aval.dtype)
        self._emit(f"{result.text} = {expression(name, operands, params, result)}")
        return [result]

    def _loop(self, params: Mapping[str, Any], operands: list[Any]) -> list[Any]:
        """`fori_loop(low, high, ...)`, which is traced as a `while` whose carry begins with the index and its end."""
        cond, body, split = params["cond_jaxpr"].jaxpr, params["body_jaxpr"], params["body_nconsts"]
        test = cond.eqns[0] if len(cond.eqns) == 1 else None
        step = next((e for e in body.jaxpr.eqns if e.outvars[0] is body.jaxpr.outvars[0]), None)
        counts = (
            params["cond_nconsts"] == 0
            and test is not None
            and test.primitive.name == "lt"
            and list(test.invars) == list(cond.invars[:2])
            and body.jaxpr.outvars[1] is body.jaxpr.invars[split + 1]
            and step is not None
            and step.primitive.name == "add"
            and step.invars[0] is body.jaxpr.invars[split]
            and getattr(step.invars[1], "val", None) == 1
        )
        if not counts:
            raise NotImplementedError("a while_loop that is no fori_loop has no counterpart in what is written")
        kept, (low, high, *carry) = operands[:split], operands[split:]
        names = [Value(self._fresh("c"), v.shape, v.dtype) for v in carry]
        for name, v in zip(names, carry, strict=True):
            self._emit(f"{name.text} = {v.text}")
        index = Value(self._fresh("i"), (), low.dtype)
        self._emit(f"for {index.text} in range({_bare(low.text)}, {_bare(high.text)}):")
        self._indent += 1
        before = len(self._lines)
        _, _, *results = self._run(body.jaxpr, body.consts, [*kept, index, high, *names])
        changed = [(n.text, r.text) for n, r in zip(names, results, strict=True) if n.text != r.text]
        if changed:
            self._emit(f"{', '.join(n for n, _ in changed)} = {', '.join(r for _, r in changed)}")
        if len(self._lines) == before:
            self._emit("pass")
        self._indent -= 1
        return [high, high, *names]

    def _access(self, name: str, eqn: Any, operands: list[Any]) -> list[Any]:
        ref, mask, other, value = operands[0], None, None, None
        if name == "get":
            transforms = eqn.params["tree"].unflatten(operands[1:])
        elif name == "swap":
            value, transforms = operands[1], eqn.params["tree"].unflatten(operands[2:])
        elif name == "masked_load":
            ref, transforms, mask, other = eqn.params["args_tree"].unflatten(operands)
        else:
            ref, transforms, value, mask = eqn.params["args_tree"].unflatten(operands)
        pointer, inside = self._address(ref, transforms)
        masks = inside + ([] if mask is None else [mask.text])
        guard = f", mask={' & '.join(f'({m})' for m in masks)}" if masks else ""
        (out,) = eqn.outvars
        if value is not None:
            self._emit(f"tl.store({pointer}, {value.text}{guard})")
            # What was there before is not asked for.
            return [None]
        default = f", other={other.text if other is not None else 0}" if masks else ""
        result = Value(self._fresh(), tuple(out.aval.shape), out.aval.dtype)
        self._emit(f"{result.text} = tl.load({pointer}{guard}{default})")
        return [result]

    def _address(self, ref: _Ref, transforms: Sequence[Any]) -> tuple[str, list[str]]:
        """The pointers to what an indexer takes of a block, and the conditions for lying within the array."""
        seen = [axis for axis in ref.axes if axis.block is not None]
        if len(transforms) > 1 or (transforms and not hasattr(transforms[0], "indices")):
            raise NotImplementedError("a view of a ref has no counterpart in what is written")
        indices = transforms[0].indices if transforms else [pl.ds(0, axis.block) for axis in seen]
        # Numbers of elements in arrays of one shape take one element each.
        arrays = [getattr(index, "shape", ()) for index in indices if not isinstance(index, pl.Slice)]
        if any(arrays) and (len(arrays) < len(indices) or len({shape for shape in arrays if shape}) > 1):
            raise NotImplementedError("an index that is an array beside slices has no counterpart in what is written")
        lanes = [k for k, index in enumerate(indices) if isinstance(index, pl.Slice)]
        numbers, vectors, inside = [ref.pointer], [], []
        for k, (axis, index) in enumerate(zip(seen, indices, strict=True)):
            at = index.start if k in lanes else index
            place = _bare(at.text) if isinstance(at, Value) else str(int(at))
            if getattr(at, "shape", ()):
                vectors.append(self._times(place, axis.stride, ref.wide))
            elif place != "0" and axis.size > 1:
                numbers.append(self._times(place, axis.stride, ref.wide))
            line = ""
            if k in lanes:
                line = f"tl.arange(0, {index.size})"
                if len(lanes) > 1:
                    line += "[" + ", ".join(":" if j == k else "None" for j in lanes) + "]"
                line += f" * {index.stride}" if index.stride != 1 else ""
                far = (index.size - 1) * index.stride * axis.stride >= 2**31
                vectors.append(self._times(line, axis.stride, far))
            if axis.partial:
                inside.append(f"{axis.start} + {place}" + (f" + {line}" if line else "") + f" < {axis.size}")
        inside += [f"{a.start} < {a.size}" for a in ref.axes if a.block is None and a.partial]
        pointer = " + ".join(numbers)
        if vectors:
            # Numbers first: they are of the program, and lanes are the same in each step of a loop.
            lines = " + ".join(vectors)
            pointer += f" + ({lines})" if len(vectors) > 1 else f" + {lines}"
        return pointer, inside


def _bare(text: str) -> str:
    """The number in a constant's text: where it is a place, its dtype is Triton's to choose."""
    return text.split(",")[1].strip() if text.startswith("tl.full((), ") else text


def _squeezed(cut: Any) -> bool:
    return cut is None or isinstance(cut, pl.Squeezed)


def _cut(cut: Any) -> tuple[int, int]:
    """A block's length along an axis, and the elements from one block to the next."""
    if _squeezed(cut):
        return 1, 1
    if isinstance(cut, pl.Blocked):
        return int(cut.block_size), int(cut.block_size)
    if isinstance(cut, int):
        return cut, cut
    raise NotImplementedError(f"a block of {type(cut).__name__} has no counterpart in what is written")


def _order(mapping: Any) -> list[int]:
    """The axes of a grid in the order in which Triton numbers programs: the kernel's own, then those of jax.vmap."""
    mapped = list(mapping.vmapped_dims)
    return [i for i in range(len(mapping.grid)) if i not in mapped] + mapped[::-1]


def _grid(mapping: Any) -> tuple[Shape, list[str]]:
    """Programs along Triton's axes, and what the place along each axis of the kernel's own grid is called."""
    sizes = [int(mapping.grid[i]) for i in _order(mapping)]
    if len(sizes) > 3 or any(n > _MOST for n in sizes[1:]):
        sizes = [math.prod(sizes)]
    return tuple(sizes), [f"p{i}" for i in range(len(mapping.grid))]
