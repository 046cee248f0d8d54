"""Classes out of range: an error at once on a CPU; on CUDA at a later call, because looking would make the host wait.

There a kernel finds the first wrong row of each part of the rows, what it finds is copied to pinned memory without a
wait, and an event is recorded behind the copy. Every later call, forward or backward, queries the events and raises
what the finished ones found. Until then the row's loss and gradient are NaN.
"""

from collections import deque
from typing import Any, NamedTuple

import torch
import triton.language as tl

from gradlab.kernels.runtime.launch_triton import block, capturing, kernel, launch
from gradlab.kernels.runtime.plans_triton import looks

# Classes that the host compares one by one.
FEW = 256


class Note(NamedTuple):
    """What a call found, copied to the host once `event.query()`; of rows M = N D and V classes."""

    event: Any
    found: torch.Tensor
    op: str
    M: int
    V: int
    D: int


_pending: deque[Note] = deque()


# fmt: off
@kernel
def _class_range_kernel(
    t_ptr, t_m,
    f_ptr,
    M, V, IGNORE, STRETCH,
    BM: tl.constexpr,
):
    """f[i] = (first m of the i-th STRETCH rows whose class is neither in [0, V) nor IGNORE, or M; that class).

    Grid (I); a program owns f[i].
    """
    i = tl.program_id(0).to(tl.int64)
    first = tl.full((BM,), 0, tl.int64) + M
    for m0 in range(0, STRETCH, BM):
        step = m0 + tl.arange(0, BM)
        m = i * STRETCH + step
        inside = (step < STRETCH) & (m < M)
        t = tl.load(t_ptr + m * t_m, mask=inside, other=0).to(tl.int64)
        wrong = inside & ((t < 0) | (t >= V)) & (t != IGNORE)
        first = tl.minimum(first, tl.where(wrong, m, M))
    found = tl.min(first, axis=0)
    tl.store(f_ptr + 2 * i, found)
    tl.store(f_ptr + 2 * i + 1, tl.load(t_ptr + found * t_m, mask=found < M, other=0).to(tl.int64))
# fmt: on


def out_of_range(t: torch.Tensor, V: int, ignore_index: int) -> torch.Tensor:
    """f[I 2]: for each of I parts of t[M] its first row with a class out of range, or M, and that class."""
    (M,) = t.shape
    parts = max(1, min(1024, -(-M // 2**14)))
    stretch = -(-M // parts)
    f = t.new_empty((parts, 2), dtype=torch.int64)
    # fmt: off
    launch(
        _class_range_kernel, [parts],
        t, *t.stride(),
        f,
        M, V, ignore_index, stretch,
        BM=block(stretch, 1024), writes=[f],
    )
    # fmt: on
    return f


@looks
def refuse_out_of_range(op: str, t: torch.Tensor, V: int, D: int, ignore_index: int) -> None:
    """Raise an IndexError for a class in t[N D] that is neither in [0, V) nor ignore_index; on CUDA, at a later call.

    t is flat; D is the length of its last axis before, for the message.
    """
    if not t.is_cuda and t.numel() <= FEW:
        # torch's ops below take the host ten times as long.
        for row, value in enumerate(t.tolist()):
            if not 0 <= value < V and value != ignore_index:
                raise IndexError(_message(op, row, value, V, D))
        return
    if not t.is_cuda:
        # torch converts a number to the tensor's dtype first: uint8 255 would equal an ignore_index of -1.
        wide = t.to(torch.int64)
        wrong = ((wide < 0) | (wide >= V)) & (wide != ignore_index)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise IndexError(_message(op, row, int(t[row]), V, D))
        return
    # A captured graph is replayed without the host: its rows are NaN and nothing is raised.
    if capturing():
        return
    raise_device_errors()
    if t.numel():
        found = out_of_range(t, V, ignore_index)
        notes = torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
        note(Note(torch.cuda.current_stream(t.device).record_event(), notes, op, t.shape[0], V, D))


def note(one: Note) -> None:
    """Keep a note until its event is over."""
    _pending.append(one)


def raise_device_errors() -> None:
    """Raise what finished calls found; nothing waits for the others.

    While a CUDA graph is captured on the current stream no event is queried, which would invalidate the capture.

    Raises:
        IndexError: an earlier call had a class out of range.
    """
    while _pending and not capturing() and _pending[0].event.query():
        one = _pending.popleft()
        row, value = min(one.found.tolist())
        if row < one.M:
            message = _message(one.op, row, value, one.V, one.D)
            raise IndexError(f"{message}; found on the GPU in an earlier call, whose loss and gradient are NaN there")


def _message(op: str, row: int, value: int, V: int, D: int) -> str:
    where = f"target[{row}]" if D == 1 else f"target.flatten(1)[{row // D}, {row % D}]"
    return f"{op}: {where} is {value}, wanted a class in [0, {V})"
