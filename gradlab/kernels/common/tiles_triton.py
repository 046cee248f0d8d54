"""Tile sizes of matmul-like kernels, for CUDA and for CPUs.

On CUDA full precision has no tensor cores, and more of K at a time spills registers where an operand is masked; half
precision takes tiles that its tensor cores want. On a CPU a tile's operands are packed into the second-level cache,
which costs as much as 1/M + 1/N of the product's time, and read from there once for each strip of the micro-kernel: 384
KiB of float32 at 128 x 128 x 256. Products that have programs enough take larger tiles.
"""

from typing import NamedTuple

import torch

from gradlab.kernels.runtime.launch_triton import block, sized_for


class Tile(NamedTuple):
    """A program's tile y[M N], its step along K, and CUDA launch options."""

    M: int
    K: int
    N: int
    warps: int = 4
    stages: int = 3


class _Most(NamedTuple):
    """The largest tile, its warps, and the largest M N for which 4 warps are enough."""

    M: int
    K: int
    N: int
    warps: int = 4
    small: int = 0


# By kind of kernel, device, and whether in half precision.
_TILES: dict[tuple[str, str, bool], _Most] = {
    ("matmul", "cuda", False): _Most(64, 16, 64),
    ("matmul", "cuda", True): _Most(128, 64, 128, 8, small=64 * 128),
    ("matmul", "cpu", False): _Most(128, 128, 256),
    ("matmul", "cpu", True): _Most(128, 512, 128),
    ("large product", "cpu", False): _Most(256, 128, 256),
    ("large product", "cpu", True): _Most(256, 512, 256),
    ("convolution", "cuda", False): _Most(64, 16, 64),
    # For contiguous channels; otherwise every element is a load of its own, with its address in registers.
    ("convolution", "cuda", True): _Most(128, 32, 128, 8, small=64 * 64),
    ("scattered convolution", "cuda", True): _Most(64, 32, 128, 8, small=64 * 64),
    ("convolution", "cpu", False): _Most(128, 32, 64),
    ("convolution", "cpu", True): _Most(128, 32, 64),
    # Both operands are contiguous along K, and are transposed or packed by full vectors.
    ("weight gradient", "cpu", False): _Most(128, 64, 64),
    ("weight gradient", "cpu", True): _Most(128, 64, 64),
    ("logits", "cuda", False): _Most(64, 16, 64),
    ("logits", "cuda", True): _Most(128, 64, 128, 8),
    ("logits", "cpu", False): _Most(64, 128, 128),
    ("logits", "cpu", True): _Most(64, 128, 128),
}
# Programs that fill the device: about four for each SM of a large GPU; a few for each core of a CPU.
_FILL = {"cuda": 512, "cpu": 16}
# Bytes of operands that stay in a core's L2 cache while programs that share rows run one after another.
_SHARED = 2**20


def tile(what: str, like: torch.Tensor, M: int, K: int, N: int) -> Tile:
    """The tile of a product y[M N] = a[M K] b[K N] for operands like `like`, no larger than the product needs.

    Args:
        what: "matmul", "logits", "convolution" or "weight gradient"; "scattered " stands in front of the last two where
            channels are not contiguous.
    """
    device, half = sized_for(like.device), like.dtype in (torch.float16, torch.bfloat16)
    if device == "cpu" and what == "matmul" and M * N >= _FILL["cpu"] * 256 * 256:
        what = "large product"
    # A kind without an entry uses that of a more general kind.
    kinds = (what, what.removeprefix("scattered "), what.replace("weight gradient", "convolution"), "convolution")
    most = next(_TILES[key] for kind in kinds if (key := (kind, device, half)) in _TILES)
    BM, BK, BN = block(M, most.M), block(K, most.K), block(N, most.N)
    if device == "cuda" and not half:
        BK = most.K
    return Tile(BM, BK, BN, 4 if BM * BN <= most.small else most.warps)


def fill(device: torch.device) -> int:
    """The least number of programs to split a launch into, where its work can be split."""
    return _FILL[sized_for(device)]


def parts(device: torch.device, programs: int, size: int) -> int:
    """Split-K of a weight gradient: the number of parts, each computed by `programs` programs.

    On a CPU the programs of one part, one tap each, run one after another and read the same rows: they find them in the
    second-level cache. It depends on sizes alone, so that any number of threads gives the same bits.

    Args:
        size: bytes of both operands.
    """
    wanted = fill(device) // 2 // programs + 1
    return wanted if sized_for(device) == "cuda" else max(wanted, -(-size // _SHARED))
