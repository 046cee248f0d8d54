"""Multi-tensor launches: one launch over any number of tensors, whose addresses, sizes and scalars are in a table.

The table has one row of 64-bit words for each of T tensors, laid out by a `RowLayout`, which the host and the kernel
both read.
T words follow: the first program of each tensor, in rising order. A program's tensor is the last whose first program
is not past it.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import accumulate, chain
from operator import or_
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from gradlab.kernels.runtime.launch_triton import (
    accumulator,
    block,
    holding,
    interpreted,
    kernel,
    launch,
    on_device,
    triton_dtype,
)

# Elements of one chunk: a program's share of a tensor.
CHUNK = 2048


class RowLayout(NamedTuple):
    """The layout of a table's rows: the names of their words, in order.

    Attributes:
        arrays: addresses of a tensor and of those that belong to it, 0 for one that it does not have; then comes
            "elements", their number.
        scalars: float64 values.
        words: further 64-bit words.
    """

    arrays: tuple[str, ...]
    scalars: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def arrays_of(self, **tensors: Any) -> tuple[Any, ...]:
        """One row's tensors in the order of `arrays`."""
        return tuple([tensors[name] for name in self.arrays])

    def words_of(self, **words: Any) -> tuple[Any, ...]:
        """One row's further words in the order of `words`."""
        return tuple([words[name] for name in self.words])

    def columns(self) -> Callable[[str], int]:
        """A function from a word's name to its column, for kernels: `tl.load(row + column("elements"))`."""
        return index_in((*self.arrays, "elements", *self.scalars, *self.words))


def index_in(names: Sequence[str]) -> Callable[[str], int]:
    """A function from a name to its index in `names`, which a kernel calls while it is compiled."""
    # A constexpr, so that the names are part of the compiled kernel's hash.
    indices = tl.constexpr({name: i for i, name in enumerate(names)})

    @triton.constexpr_function
    def index(name):
        return indices.value[name]

    return index


@kernel
def tensor_of(table_ptr, T, WORDS: tl.constexpr, BT: tl.constexpr):
    """The number of the tensor that this program works on, in a table of T rows of WORDS words."""
    i = tl.arange(0, BT)
    first = tl.load(table_ptr + WORDS * T + i, mask=i < T, other=2**62)
    return tl.sum((first <= tl.program_id(0)).to(tl.int64), axis=0) - 1


@kernel
def start_of(table_ptr, T, tensor, WORDS: tl.constexpr, BE: tl.constexpr):
    """The first element of this program's chunk of its tensor."""
    return (tl.program_id(0).to(tl.int64) - tl.load(table_ptr + WORDS * T + tensor)) * BE


@kernel
def address(word_ptr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer in a word of the table; ALIGNED declares it a multiple of 16 bytes."""
    pointer = tl.load(word_ptr).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        # Triton knows no alignment of an address that was loaded, and would load every element by itself.
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@kernel
def scalar(word_ptr):
    """The float64 in a word of the table."""
    return tl.load(word_ptr).to(tl.float64, bitcast=True)


@kernel
def masked_load(ptr, e, E, ACC: tl.constexpr, FULL: tl.constexpr):
    """The elements e in ACC, masked by e < E; with FULL all are in range, and the load has no mask."""
    if FULL:
        found = tl.load(ptr + e)
    else:
        found = tl.load(ptr + e, mask=e < E, other=0.0)
    return found.to(ACC)


@kernel
def masked_store(ptr, e, E, value, FULL: tl.constexpr):
    """Store the elements e, masked by e < E; FULL as in `masked_load`."""
    rounded = value.to(ptr.dtype.element_ty)
    if FULL:
        tl.store(ptr + e, rounded)
    else:
        tl.store(ptr + e, rounded, mask=e < E)


@kernel
def times(factor, x):
    """factor x; 0 where the factor is 0, also for an x that is not finite."""
    return tl.where(factor == 0, 0.0, factor * x)


def dense(t: torch.Tensor) -> torch.Tensor:
    """The tensor itself if its elements fill their memory without gaps or overlaps, else a contiguous copy."""
    if t.is_contiguous():
        return t
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n != 1):
        if stride != expected:
            return t.contiguous()
        expected *= size
    return t


def chunks_in(sizes: Sequence[int], BE: int) -> int:
    """The number of programs of a launch over tensors of these sizes, in chunks of BE elements."""
    return sum(-(-size // BE) for size in sizes)


def launch_many(
    jit: JITFunction,
    row: RowLayout,
    tensors: Mapping[str, Sequence[torch.Tensor]],
    scalars: Sequence[float] = (),
    *,
    words: Mapping[str, Sequence[int]] = MappingProxyType({}),
    args: Sequence[torch.Tensor | None] = (),
    dtypes: Mapping[str, str] | None = None,
    chunk: int = CHUNK,
    op: str,
    **constants: Any,
) -> None:
    """Run `jit` over T tensors in one launch, each in chunks; tensors without elements take no part.

    Args:
        jit: takes (table_ptr, T), `args`, and the constants ACC, `dtypes`, ALIGNED, WORDS, BT, BE and `constants`.
        row: the layout of the table's rows, which the kernel reads by `RowLayout.columns`.
        tensors: for each of `row.arrays` T tensors on one device, of one dtype; those of one index have the same
            elements at the same places in memory, without gaps. A tensor without elements means that there is none.
        scalars: those of `row.scalars` of each tensor, one tensor after another; float64 values, copied with the table.
        words: for each of `row.words` T integers.
        args: tensors for every program; None for one that the kernel does not read.
        dtypes: constant -> the array whose dtype it is; by default DTYPE, that of the first.
        chunk: elements that one program works on.
        op: the public name of the op that launches, for errors.

    Raises:
        TypeError: a tensor is bfloat16 and Triton's interpreter runs the kernel: it has no bfloat16.
    """
    by_role, further = [tensors[name] for name in row.arrays], [words[name] for name in row.words]
    sizes = [t.numel() for t in by_role[0]]
    T, each = len(sizes), len(row.scalars)
    if 0 in sizes:
        present = [i for i in range(T) if sizes[i]]
        scalars = [x for i in present for x in scalars[each * i : each * (i + 1)]]
        by_role = [[column[i] for i in present] for column in by_role]
        further = [[column[i] for i in present] for column in further]
        sizes, T = [sizes[i] for i in present], len(present)
    if not T:
        return
    first = dict(zip(row.arrays, (column[0] for column in by_role), strict=True))
    device, dtype = by_role[0][0].device, by_role[0][0].dtype
    if interpreted(device) and any(t.dtype == torch.bfloat16 for t in first.values()):
        # Elsewhere the interpreter gets float32 copies; here the kernel reads the tensors by address.
        raise TypeError(
            f"{op}: a tensor is bfloat16, wanted float64, float32 or float16 under GRADLAB_CPU=interpret: Triton's "
            "interpreter has no bfloat16"
        )
    # Column by column, each in one pass: for thousands of tensors the host takes longer than the kernel.
    addresses = [[t.data_ptr() for t in column] for column in by_role]
    bits = struct.unpack(f"{len(scalars)}q", struct.pack(f"{len(scalars)}d", *scalars))
    table = [*addresses, sizes, *(bits[i::each] for i in range(each)), *further]
    starts = list(accumulate([-(-size // chunk) for size in sizes], initial=0))
    on = on_device([*chain.from_iterable(zip(*table, strict=True)), *starts[:-1]], torch.int64, device, op)
    named = {"DTYPE": row.arrays[0]} if dtypes is None else dtypes
    # fmt: off
    launch(
        jit, [starts[-1]],
        on,
        T,
        *(on if a is None else a for a in args),
        **{constant: triton_dtype(first[name].dtype) for constant, name in named.items()},
        ACC=triton_dtype(accumulator(dtype)),
        ALIGNED=not reduce(or_, chain.from_iterable(addresses)) % 16, WORDS=len(table), BT=block(T, 2**20, least=1),
        BE=chunk, **constants, writes=[on], warps=8,
        holds=[t for t in chain.from_iterable(by_role) if t.numel()] if holding() else [],
    )
    # fmt: on
