"""The norm of all elements of any number of tensors, and their product with a number, as Triton kernels.

Each program sums the squares of one chunk, then one program sums the sums, always in the same order: no atomics.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
import triton.language as tl

from gradlab.kernels.optimizers.multi_tensor_triton import (
    RowLayout,
    aligned,
    chunk_of,
    chunks_in,
    dense,
    launch_many,
    masked_load,
    masked_store,
    pointer,
)
from gradlab.kernels.runtime.launch_triton import block, kernel, launch, op

# Elements that one compiled program sums, and those of them that it loads at a time.
CHUNK, TILE = 2**16, 2048
# Added to the norm, as in torch.nn.utils.clip_grad_norm_.
EPS = 1e-6
ROW = RowLayout(arrays=("x",))
column = ROW.columns()


# fmt: off
@kernel
def _squares(
    x_ptr,
    start, E, whole,
    scale_ptr, s_ptr,
    ACC: tl.constexpr, SCALED: tl.constexpr, TILE: tl.constexpr, ALIGNED: tl.constexpr, BE: tl.constexpr,
):
    """The sum of (x / scale)^2 over the BE elements from `start`, of a tensor of E elements.

    `whole` says that loads may be without a mask where all elements are there; ALIGNED, that x lies at a multiple of 16
    bytes then.
    """
    factor = tl.full((1,), 1.0, ACC)
    if SCALED:
        factor = factor / tl.load(scale_ptr).to(ACC)
    sum_ = tl.zeros((TILE,), ACC)
    # A mask against a number that was loaded splits wide loads, so only a tensor's last chunk has one.
    if whole & (start + BE <= E):
        for k in range(0, BE, TILE):
            x = masked_load(aligned(x_ptr, ALIGNED), start + k + tl.arange(0, TILE), E, ACC, True) * factor
            sum_ += x * x
    else:
        # At most BE, so the loop's counter fits 32 bits.
        for k in range(0, tl.minimum(E - start, BE).to(tl.int32), TILE):
            x = masked_load(x_ptr, start + k + tl.arange(0, TILE), E, ACC, False) * factor
            sum_ += x * x
    tl.store(s_ptr + tl.program_id(0), tl.sum(sum_, axis=0).to(tl.float64))


@kernel
def _squares_kernel(
    x_ptr,
    E,
    scale_ptr, s_ptr,
    ACC: tl.constexpr, SCALED: tl.constexpr, TILE: tl.constexpr, BE: tl.constexpr,
):
    """s[i] = the sum of (x / scale)^2 over the i-th chunk of one tensor; grid (E/BE); a program owns s[i]."""
    _squares(x_ptr, tl.program_id(0).to(tl.int64) * BE, E, True, scale_ptr, s_ptr, ACC, SCALED, TILE, False, BE)


@kernel
def _squares_many_kernel(
    table_ptr, map_ptr,
    scale_ptr, s_ptr,
    ACC: tl.constexpr, DTYPE: tl.constexpr, SCALED: tl.constexpr,
    WORDS: tl.constexpr, ALIGN: tl.constexpr, TILE: tl.constexpr, BE: tl.constexpr,
):
    """s[i] = the sum of (x / scale)^2 over the i-th chunk; grid (chunks of BE); a program owns s[i]."""
    tensor, start = chunk_of(map_ptr, BE)
    row = table_ptr + WORDS * tensor
    x = tl.load(row + column("x"))
    _squares(
        pointer(x, DTYPE), start, tl.load(row + column("elements")), x % ALIGN == 0,
        scale_ptr, s_ptr, ACC, SCALED, TILE, True, BE,
    )


@kernel
def _clip_kernel(
    s_ptr, y_ptr,
    max_norm: tl.float64, eps: tl.float64,
    I,
    BI: tl.constexpr,
):
    """y = (n, min(1, max_norm / (n + eps))), n the root of the sum of s[I]; grid (1,)."""
    sum_ = tl.zeros((BI,), tl.float64)
    for k in range(0, I, BI):
        i = k + tl.arange(0, BI)
        sum_ += tl.load(s_ptr + i, mask=i < I, other=0.0)
    norm = tl.sqrt(tl.sum(sum_, axis=0))
    factor = max_norm / (norm + eps)
    tl.store(y_ptr, norm)
    # A norm of NaN gives a factor of NaN.
    tl.store(y_ptr + 1, tl.where(factor > 1, 1.0, factor))


@kernel
def _scale(
    x_ptr,
    start, E, whole,
    clip_ptr,
    ACC: tl.constexpr, ALIGNED: tl.constexpr, BE: tl.constexpr,
):
    """x' = clip[1] x of the BE elements from `start`, of a tensor of E elements; `whole`, ALIGNED as in `_squares`."""
    e = start + tl.arange(0, BE)
    factor = tl.load(clip_ptr + 1).to(ACC)
    if whole & (start + BE <= E):
        x_ptr = aligned(x_ptr, ALIGNED)
        masked_store(x_ptr, e, E, masked_load(x_ptr, e, E, ACC, True) * factor, True)
    else:
        masked_store(x_ptr, e, E, masked_load(x_ptr, e, E, ACC, False) * factor, False)


@kernel
def _scale_kernel(
    x_ptr,
    E,
    clip_ptr,
    ACC: tl.constexpr, BE: tl.constexpr,
):
    """x' = clip[1] x of one tensor, all E elements; grid (E/BE); a program owns a chunk of BE."""
    _scale(x_ptr, tl.program_id(0).to(tl.int64) * BE, E, True, clip_ptr, ACC, False, BE)


@kernel
def _scale_many_kernel(
    table_ptr, map_ptr,
    clip_ptr,
    ACC: tl.constexpr, DTYPE: tl.constexpr, WORDS: tl.constexpr, ALIGN: tl.constexpr, BE: tl.constexpr,
):
    """x' = clip[1] x over the tensors of a table; grid (chunks of BE); a program owns one chunk."""
    tensor, start = chunk_of(map_ptr, BE)
    row = table_ptr + WORDS * tensor
    x = tl.load(row + column("x"))
    _scale(pointer(x, DTYPE), start, tl.load(row + column("elements")), x % ALIGN == 0, clip_ptr, ACC, True, BE)
# fmt: on


def _global_norm_fake(tensors, max_norm, grad_scale):
    return tensors[0].new_empty(2, dtype=torch.float64)


@op("global_norm", fake=_global_norm_fake, from_host=True)
def global_norm(tensors: Sequence[torch.Tensor], max_norm: float, grad_scale: torch.Tensor | None) -> torch.Tensor:
    """y[2]: the norm of all elements of all tensors, each over `grad_scale`, and min(1, max_norm / (norm + 1e-6)).

    One launch for each dtype, and one for all; E elements read. Same inputs, same bits; no host synchronisation.

    Args:
        tensors: at least one, on one device; float64, float32, float16 or bfloat16, also mixed; any strides.
        max_norm: the norm above which the factor is below 1; a run-time value.
        grad_scale: a factor that the tensors were multiplied by, one float32 on the device.

    Returns:
        Two float64 on the tensors' device. Squares are summed in float32 or better, the sums of 2^16 in float64.
    """
    device = tensors[0].device
    batches: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
    for t in tensors:
        if t.numel():
            batches[t.dtype].append(dense(t))
    sizes = {dtype: [t.numel() for t in batch] for dtype, batch in batches.items()}
    parts = {dtype: chunks_in(many, CHUNK) for dtype, many in sizes.items()}
    s = torch.empty(sum(parts.values()), dtype=torch.float64, device=device)
    at = 0
    for dtype, batch in batches.items():
        launch_many(
            _squares_kernel,
            _squares_many_kernel,
            ROW,
            {"x": batch},
            args=(grad_scale, s[at:]),
            chunk=CHUNK,
            SCALED=grad_scale is not None,
            TILE=TILE,
            op="clip_grad_norm_",
        )
        at += parts[dtype]
    return _clipped(s, at, max_norm)


def _clip_factor_fake(squares, max_norm):
    return squares.new_empty(2)


@op("clip_factor", fake=_clip_factor_fake)
def clip_factor(squares: torch.Tensor, max_norm: float) -> torch.Tensor:
    """y[2] of `global_norm` for the sums of squares s[I], contiguous float64, of all ranks."""
    return _clipped(squares, len(squares), max_norm)


def _clipped(s: torch.Tensor, count: int, max_norm: float) -> torch.Tensor:
    y = torch.empty(2, dtype=torch.float64, device=s.device)
    # fmt: off
    launch(
        _clip_kernel, [1],
        s, y,
        float(max_norm), EPS,
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
        clip: the result of `global_norm`.
    """
    launch_many(_scale_kernel, _scale_many_kernel, ROW, {"x": tensors}, args=(clip,), op="clip_grad_norm_")
