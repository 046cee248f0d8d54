"""Multi-tensor launches: one launch over any number of tensors, a program for each chunk of each.

The addresses, sizes and scalars of T tensors are in a table: a row of 64-bit words for each, laid out by a `RowLayout`,
which the host and the kernel both read. A map has two 32-bit words for each program: its tensor, and which of that
tensor's chunks is its own, so that a program finds its work by two loads, however many tensors there are. The map hangs
on sizes alone and stays on the device; the table is new at each step.

One tensor needs neither: what its row would hold are the arguments of a kernel of its own, and nothing comes from the
host's memory, so that the launch may be captured into a CUDA graph.
"""

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from gradlab.kernels.runtime.launch_triton import (
    accumulator,
    holding,
    interpreted,
    kernel,
    launch,
    on_device,
    sized_for,
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
def chunk_of(map_ptr, BE: tl.constexpr):
    """The number of this program's tensor, and the first element of its chunk of it."""
    at = map_ptr + 2 * tl.program_id(0).to(tl.int64)
    return tl.load(at), tl.load(at + 1).to(tl.int64) * BE


@kernel
def pointer(word, DTYPE: tl.constexpr):
    """The address in a word of the table, as a pointer."""
    return word.to(tl.pointer_type(DTYPE))


@kernel
def aligned(ptr, ALIGNED: tl.constexpr):
    """A pointer; ALIGNED declares it a multiple of 16 bytes."""
    if ALIGNED:
        # Triton knows no alignment of an address that was loaded, and would load every element by itself. It notes one
        # on the operation that makes a value, which an argument does not have.
        ptr = tl.multiple_of(ptr.to(tl.int64).to(ptr.dtype), 16)
    return ptr


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


@functools.lru_cache(maxsize=16)
def _map(sizes: tuple[int, ...], chunk: int, device: torch.device, stream: int, op: str) -> torch.Tensor:
    """The map [programs 2] of tensors of these sizes; cached for the stream that it is copied on."""
    counts = torch.tensor([-(-size // chunk) for size in sizes], device="cpu")
    tensor = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    pairs = torch.stack([tensor, torch.arange(len(tensor), device="cpu") - first[tensor]], 1)
    return on_device(pairs.to(torch.int32), torch.int32, device, op)


def launch_many(
    one: JITFunction,
    many: JITFunction,
    row: RowLayout,
    tensors: Mapping[str, Sequence[torch.Tensor]],
    scalars: Sequence[float] = (),
    *,
    words: Mapping[str, Sequence[int | torch.Tensor]] = MappingProxyType({}),
    args: Sequence[torch.Tensor | None] = (),
    dtypes: Mapping[str, str] | None = None,
    chunk: int = CHUNK,
    op: str,
    **constants: Any,
) -> None:
    """Step T tensors in one launch, each in chunks; tensors without elements take no part.

    Args:
        one: the kernel of a single tensor. It takes what a row would hold, in the row's order: a pointer for each of
            the arrays, the number of elements, the scalars, the words; then `args`, the constants ACC, BE and
            `constants`.
        many: the kernel of several. It takes (table_ptr, map_ptr), `args`, and the constants ACC, `dtypes`, WORDS,
            ALIGN, BE and `constants`. ALIGN is what the addresses of a tensor must be multiples of for wide accesses.
        row: the layout of the table's rows, which `many` reads by `RowLayout.columns`.
        tensors: for each of `row.arrays` T tensors on one device, of one dtype; those of one index have the same
            elements at the same places in memory, without gaps. A tensor without elements means that there is none.
        scalars: those of `row.scalars` of each tensor, one tensor after another; float64 values.
        words: for each of `row.words` T integers, or T tensors, whose addresses are meant.
        args: tensors for every program; None for one that the kernel does not read.
        dtypes: constant of `many` -> the array whose dtype it is; by default DTYPE, that of the first.
        chunk: elements that one program works on.
        op: the public name of the op that launches, for errors.

    Raises:
        TypeError: a tensor is bfloat16 and Triton's interpreter runs the kernel: it has no bfloat16.
        ValueError: the stream is captured into a CUDA graph, and there are several tensors.
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
    first = {name: column[0] for name, column in zip(row.arrays, by_role, strict=True)}
    lead = by_role[0][0]
    if interpreted(lead.device) and any(t.dtype == torch.bfloat16 for t in first.values()):
        # Elsewhere the interpreter gets float32 copies; here the kernel reads the tensors by address.
        raise TypeError(
            f"{op}: a tensor is bfloat16, wanted float64, float32 or float16 under GRADLAB_CPU=interpret: Triton's "
            "interpreter has no bfloat16"
        )
    constants |= {"ACC": triton_dtype(accumulator(lead.dtype)), "BE": chunk}
    given = [lead if a is None else a for a in args]
    if T == 1:
        numbers, own = [float(x) for x in scalars], [column[0] for column in further]
        written = [t for t in first.values() if t.numel()]
        grid = [-(-sizes[0] // chunk)]
        launch(one, grid, *first.values(), sizes[0], *numbers, *own, *given, **constants, writes=written, warps=8)
        return
    # Column by column, each in one pass: for thousands of tensors the host takes longer than the kernel.
    addresses = [[t.data_ptr() for t in column] for column in by_role]
    bits = struct.unpack(f"{len(scalars)}q", struct.pack(f"{len(scalars)}d", *scalars))
    numbers_of = [[w.data_ptr() if isinstance(w, torch.Tensor) else w for w in column] for column in further]
    table = [*addresses, sizes, *(bits[i::each] for i in range(each)), *numbers_of]
    on = on_device(list(chain.from_iterable(zip(*table, strict=True))), torch.int64, lead.device, op)
    stream = torch.cuda.current_stream(lead.device).cuda_stream if lead.device.type == "cuda" else 0
    where = _map(tuple(sizes), chunk, lead.device, stream, op)
    named = {"DTYPE": row.arrays[0]} if dtypes is None else dtypes
    # fmt: off
    launch(
        many, [len(where)],
        on, where,
        *given,
        **{constant: triton_dtype(first[name].dtype) for constant, name in named.items()},
        **constants, WORDS=len(table), ALIGN=16 if sized_for(lead.device) == "cuda" else 1, writes=[on], warps=8,
        holds=[t for t in chain.from_iterable(by_role) if t.numel()] if holding() else [],
    )
    # fmt: on
