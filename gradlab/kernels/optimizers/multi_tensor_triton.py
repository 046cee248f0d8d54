"""One launch over any number of tensors: a table of addresses, sizes and scalars, and what a kernel reads out of it.

A row of the table is one tensor's: addresses of the arrays of each role, 0 where it has none, elements, scalars as
float64, then further words of the kernel's own, all of 64 bits. Behind the T rows stand T first chunks, in rising
order: the number of them not past a program names the tensor that the program works on.
"""

import struct
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import accumulate, chain
from operator import or_
from typing import Any

import torch
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


@kernel
def tensor_of(table_ptr, T, WORDS: tl.constexpr, BT: tl.constexpr):
    """Which of the T tensors this program works on, in a table whose rows are WORDS long."""
    i = tl.arange(0, BT)
    first = tl.load(table_ptr + WORDS * T + i, mask=i < T, other=2**62)
    return tl.sum((first <= tl.program_id(0)).to(tl.int64), axis=0) - 1


@kernel
def start_of(table_ptr, T, tensor, WORDS: tl.constexpr, BE: tl.constexpr):
    """The first element of this program's chunk of its tensor."""
    return (tl.program_id(0).to(tl.int64) - tl.load(table_ptr + WORDS * T + tensor)) * BE


@kernel
def address(word_ptr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer that a word of the table holds; ALIGNED promises a multiple of 16 bytes."""
    pointer = tl.load(word_ptr).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        # Addresses out of memory promise nothing by themselves, and every element would be a load of its own.
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@kernel
def scalar(word_ptr):
    """The float64 that a word of the table holds."""
    return tl.load(word_ptr).to(tl.float64, bitcast=True)


@kernel
def some(ptr, e, E, ACC: tl.constexpr, WHOLE: tl.constexpr):
    """The elements e below E in ACC; WHOLE promises that all are, and nothing is masked."""
    if WHOLE:
        found = tl.load(ptr + e)
    else:
        found = tl.load(ptr + e, mask=e < E, other=0.0)
    return found.to(ACC)


@kernel
def keep(ptr, e, E, value, WHOLE: tl.constexpr):
    """Store the elements e below E; WHOLE as in `some`."""
    rounded = value.to(ptr.dtype.element_ty)
    if WHOLE:
        tl.store(ptr + e, rounded)
    else:
        tl.store(ptr + e, rounded, mask=e < E)


@kernel
def times(factor, x):
    """factor x, and 0 where the factor is, whatever x."""
    return tl.where(factor == 0, 0.0, factor * x)


def dense(t: torch.Tensor) -> torch.Tensor:
    """The tensor itself when its elements fill their memory without gaps or overlaps, else a contiguous copy."""
    if t.is_contiguous():
        return t
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n != 1):
        if stride != expected:
            return t.contiguous()
        expected *= size
    return t


def chunks_in(sizes: Sequence[int], BE: int) -> int:
    """How many programs a launch over tensors of these sizes has."""
    return sum(-(-size // BE) for size in sizes)


def launch_many(
    jit: JITFunction,
    columns: Sequence[Sequence[torch.Tensor]],
    written: Sequence[int],
    scalars: Sequence[float] = (),
    *,
    words: Sequence[Sequence[int]] = (),
    args: Sequence[torch.Tensor | None] = (),
    dtypes: Mapping[str, int] | None = None,
    chunk: int = CHUNK,
    op: str,
    **constants: Any,
) -> None:
    """Run `jit` over T tensors in one launch, each in chunks; tensors without elements take no part.

    Args:
        jit: takes (table_ptr, T), `args`, and the constants ACC, `dtypes`, ALIGNED, WORDS, BT, BE and `constants`.
        columns: for each role T tensors on one device, of one dtype; those of one index have the same elements at the
            same places in memory, without gaps. A tensor that has none of a role stands there without elements.
        written: the columns that the kernel stores to.
        scalars: as many of them for each tensor, one tensor after another; float64 values that travel with the
            addresses.
        words: for each tensor as many further words of the row.
        args: tensors for every program; None stands for one that the kernel does not read.
        dtypes: constant -> the column whose dtype it is, as the kernel sees it; DTYPE, that of the first, by default.
        chunk: elements that one program works on.
        op: the public name of what launches, for errors.

    Raises:
        TypeError: a tensor is bfloat16 and Triton's interpreter runs the kernel, which knows no such numbers.
    """
    sizes = [t.numel() for t in columns[0]]
    T, each = len(sizes), len(scalars) // max(len(sizes), 1)
    if 0 in sizes:
        there = [i for i in range(T) if sizes[i]]
        scalars = [x for i in there for x in scalars[each * i : each * (i + 1)]]
        columns, words = [[column[i] for i in there] for column in columns], [words[i] for i in there if words]
        sizes, T = [sizes[i] for i in there], len(there)
    if not T:
        return
    first = [column[0] for column in columns]
    if interpreted(first[0].device) and any(t.dtype == torch.bfloat16 for t in first):
        # What it reads by address no copy in float32 can stand in for.
        raise TypeError(
            f"{op}: a tensor is bfloat16, wanted float64, float32 or float16 under GRADLAB_CPU=interpret: Triton's "
            "interpreter has no bfloat16"
        )
    # By columns, each in one pass: thousands of tensors take the host longer than their kernel.
    addresses = [[t.data_ptr() for t in column] for column in columns]
    bits = struct.unpack(f"{len(scalars)}q", struct.pack(f"{len(scalars)}d", *scalars))
    table = [*addresses, sizes, *(bits[i::each] for i in range(each)), *zip(*words, strict=True)]
    starts = list(accumulate([-(-size // chunk) for size in sizes], initial=0))
    on = on_device([*chain.from_iterable(zip(*table, strict=True)), *starts[:-1]], torch.int64, first[0].device, op)
    named = {"DTYPE": 0} if dtypes is None else dtypes
    # fmt: off
    launch(
        jit, [starts[-1]],
        on,
        T,
        *(on if a is None else a for a in args),
        **{name: triton_dtype(first[i].dtype) for name, i in named.items()},
        ACC=triton_dtype(accumulator(first[0].dtype)),
        ALIGNED=not reduce(or_, chain.from_iterable(addresses)) % 16, WORDS=len(table), BT=block(T, 2**20, least=1),
        BE=chunk, **constants, writes=[on], warps=8,
        holds=[t for t in chain.from_iterable(columns) if t.numel()] if holding() else [],
    )
    # fmt: on
