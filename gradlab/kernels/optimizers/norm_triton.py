"""The norm of all elements of any number of tensors, and their product with a number, as Triton kernels.

Each program sums the squares of one chunk, one more program the sums, in the same order every time: no atomics.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
import triton.language as tl

from gradlab.kernels.optimizers.multi_tensor_triton import (
    address,
    chunks_in,
    dense,
    keep,
    launch_many,
    some,
    start_of,
    tensor_of,
)
from gradlab.kernels.runtime.launch_triton import block, kernel, launch, on_device, op

# Elements that one compiled program sums, and those of them that it loads at a time.
STRETCH, TILE = 2**16, 2048
# torch.nn.utils.clip_grad_norm_ adds it to the norm.
EPS = 1e-6


# fmt: off
@kernel
def _squares_kernel(
    table_ptr,
    T,
    scale_ptr, s_ptr,
    ACC: tl.constexpr, DTYPE: tl.constexpr, SCALED: tl.constexpr, ALIGNED: tl.constexpr,
    WORDS: tl.constexpr, BT: tl.constexpr, TILE: tl.constexpr, BE: tl.constexpr,
):
    """s[i] = the sum of (g / scale)^2 over the i-th chunk; grid (chunks of BE); a program owns s[i].

    A row of the table is 2 words: the address of g; elements.
    """
    tensor = tensor_of(table_ptr, T, WORDS, BT)
    row = table_ptr + WORDS * tensor
    g_ptr = address(row, DTYPE, ALIGNED)
    E = tl.load(row + 1)
    start = start_of(table_ptr, T, tensor, WORDS, BE)
    factor = tl.full((1,), 1.0, ACC)
    if SCALED:
        factor = factor / tl.load(scale_ptr).to(ACC)
    sum_ = tl.zeros((TILE,), ACC)
    # A mask against a number out of memory splits wide loads, so only a tensor's last chunk has one.
    if start + BE <= E:
        for k in range(0, BE, TILE):
            g = some(g_ptr, start + k + tl.arange(0, TILE), E, ACC, True) * factor
            sum_ += g * g
    else:
        # Fewer than BE: they fit the 32 bits that a loop counts in.
        for k in range(0, (E - start).to(tl.int32), TILE):
            g = some(g_ptr, start + k + tl.arange(0, TILE), E, ACC, False) * factor
            sum_ += g * g
    tl.store(s_ptr + tl.program_id(0), tl.sum(sum_, axis=0).to(tl.float64))


@kernel
def _clip_kernel(
    s_ptr, bound_ptr, y_ptr,
    I,
    BI: tl.constexpr,
):
    """y = (n, min(1, max_norm / (n + eps))), n the root of the sum of s[I]; grid (1,); bound = (max_norm, eps)."""
    sum_ = tl.zeros((BI,), tl.float64)
    for k in range(0, I, BI):
        i = k + tl.arange(0, BI)
        sum_ += tl.load(s_ptr + i, mask=i < I, other=0.0)
    norm = tl.sqrt(tl.sum(sum_, axis=0))
    factor = tl.load(bound_ptr) / (norm + tl.load(bound_ptr + 1))
    tl.store(y_ptr, norm)
    # A norm that is not a number gives a factor that is none.
    tl.store(y_ptr + 1, tl.where(factor > 1, 1.0, factor))


@kernel
def _scale_kernel(
    table_ptr,
    T,
    clip_ptr,
    ACC: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr,
    WORDS: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
):
    """x' = x times the second element of clip, over the tensors of a table.

    Grid (chunks of BE); a program owns one chunk.

    A row of the table is 2 words: the address of x; elements.
    """
    tensor = tensor_of(table_ptr, T, WORDS, BT)
    row = table_ptr + WORDS * tensor
    x_ptr = address(row, DTYPE, ALIGNED)
    E = tl.load(row + 1)
    start = start_of(table_ptr, T, tensor, WORDS, BE)
    e = start + tl.arange(0, BE)
    factor = tl.load(clip_ptr + 1).to(ACC)
    if start + BE <= E:
        keep(x_ptr, e, E, some(x_ptr, e, E, ACC, True) * factor, True)
    else:
        keep(x_ptr, e, E, some(x_ptr, e, E, ACC, False) * factor, False)
# fmt: on


def _global_norm_fake(tensors, max_norm, grad_scale):
    return tensors[0].new_empty(2, dtype=torch.float64)


@op("global_norm", fake=_global_norm_fake, from_host=True)
def global_norm(tensors: Sequence[torch.Tensor], max_norm: float, grad_scale: torch.Tensor | None) -> torch.Tensor:
    """y[2]: the norm of all elements of all tensors, each over `grad_scale`, and min(1, max_norm / (norm + 1e-6)).

    One launch for each dtype, and one for all; E elements read. Same inputs, same bits; nothing waits for the device.

    Args:
        tensors: at least one, on one device, of the lab's floating dtypes; any strides.
        max_norm: the largest norm that is left as it is; a run-time value.
        grad_scale: what the tensors were multiplied by, one float32 on the device.

    Returns:
        Two float64 on the tensors' device. Squares are summed in float32 or better, the sums of 2^16 in float64.
    """
    device = tensors[0].device
    batches: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
    for t in tensors:
        if t.numel():
            batches[t.dtype].append(dense(t))
    sizes = {dtype: [t.numel() for t in batch] for dtype, batch in batches.items()}
    parts = {dtype: chunks_in(many, STRETCH) for dtype, many in sizes.items()}
    s = torch.empty(sum(parts.values()), dtype=torch.float64, device=device)
    at = 0
    for dtype, batch in batches.items():
        launch_many(
            _squares_kernel,
            (batch,),
            (),
            args=(grad_scale, s[at:]),
            chunk=STRETCH,
            SCALED=grad_scale is not None,
            TILE=TILE,
            op="clip_grad_norm_",
        )
        at += parts[dtype]
    return _clipped(s, at, max_norm)


def _clip_factor_fake(squares, max_norm):
    return squares.new_empty(2)


@op("clip_factor", fake=_clip_factor_fake, from_host=True)
def clip_factor(squares: torch.Tensor, max_norm: float) -> torch.Tensor:
    """What `global_norm` gives, of the sums of squares s[I], contiguous float64: parts of it that others hold, too."""
    return _clipped(squares, len(squares), max_norm)


def _clipped(s: torch.Tensor, count: int, max_norm: float) -> torch.Tensor:
    y = torch.empty(2, dtype=torch.float64, device=s.device)
    # fmt: off
    launch(
        _clip_kernel, [1],
        s, on_device([max_norm, EPS], torch.float64, s.device, "clip_grad_norm_"), y,
        count,
        BI=block(count, 1024), writes=[y],
    )
    # fmt: on
    return y


def _scale_fake(tensors, clip):
    return None


@op("scale_", fake=_scale_fake, mutates=("tensors",), from_host=True)
def scale_(tensors: Sequence[torch.Tensor], clip: torch.Tensor) -> None:
    """Multiply the tensors in place by clip[1]: E elements read, E written, in one launch.

    Args:
        tensors: of one dtype and on one device, each filling its memory without gaps.
        clip: as `global_norm` gives it.
    """
    launch_many(_scale_kernel, (tensors,), (0,), args=(clip,), op="clip_grad_norm_")
