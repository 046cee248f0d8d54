"""One launch over any number of tensors: a table of addresses, sizes and scalars, and what a kernel reads out of it.

A row of the table is one tensor's: addresses of the arrays of each role, elements, then scalars as float64, all words
of 64 bits. Behind the T rows stand T first chunks, in rising order: the number of them not past a program names the
tensor that the program works on.
"""

import struct
from collections.abc import Sequence

import torch
import triton.language as tl
from triton.runtime.jit import JITFunction

from gradlab.kernels.launch_triton import (
    INTERPRETED_TILE,
    accumulator,
    block,
    interpreted,
    kernel,
    launch,
    on_device,
    staged,
    triton_dtype,
)  # fmt: skip

# Elements of one compiled chunk: one program's share of a tensor.
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


def launch_many(jit: JITFunction, columns: Sequence[Sequence[torch.Tensor]], written: Sequence[int],
                scalars: Sequence[float]) -> None:  # fmt: skip
    """Run `jit` over T tensors in one launch, each in chunks; tensors without elements take no part.

    Args:
        jit: takes (table_ptr, T) and the constants ACC, DTYPE, ALIGNED, BT, BE.
        columns: for each role T tensors, of one dtype and on one device; those of one index have the same elements at
            the same places in memory, without gaps. A tensor whose kernel does not touch a role may have none there.
        written: the columns that the kernel stores to.
        scalars: as many of them for each tensor, one tensor after another; float64 values that travel with the
            addresses.
    """
    tensors = list(zip(*columns, strict=True))
    each = len(scalars) // max(len(tensors), 1)
    rows = [(row, scalars[each * i : each * (i + 1)]) for i, row in enumerate(tensors) if row[0].numel()]
    if not rows:
        return
    device, dtype = rows[0][0][0].device, rows[0][0][0].dtype
    if not interpreted(device):
        _launch_table(jit, rows, CHUNK, dtype, device)
        return
    BE = block(max(row[0].numel() for row, _ in rows), INTERPRETED_TILE, least=1)
    with staged([t for row, _ in rows for t in row], [row[i] for row, _ in rows for i in written]) as stage:
        seen = [([stage(t) for t in row], values) for row, values in rows]
        _launch_table(jit, seen, BE, seen[0][0][0].dtype, device)


def _launch_table(jit: JITFunction, rows: list, BE: int, dtype: torch.dtype, device: torch.device) -> None:
    words, firsts, chunks = [], [], 0
    for row, values in rows:
        size = row[0].numel()
        words += [t.data_ptr() for t in row] + [size]
        words += struct.unpack(f"{len(values)}q", struct.pack(f"{len(values)}d", *values))
        firsts.append(chunks)
        chunks += -(-size // BE)
    table = on_device(words + firsts, torch.int64, device)
    T = len(rows)
    aligned = all(t.data_ptr() % 16 == 0 for row, _ in rows for t in row)
    # fmt: off
    launch(
        jit, [chunks],
        table,
        T,
        ACC=triton_dtype(accumulator(dtype)), DTYPE=triton_dtype(dtype), ALIGNED=aligned,
        BT=block(T, 2**20, least=1), BE=BE, writes=[table], warps=8,
        holds=[t for row, _ in rows for t in row],
    )
    # fmt: on
