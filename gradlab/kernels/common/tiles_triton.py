"""Tile sizes of matmul-like kernels, for CUDA and for CPUs, from the table in `kernels/configs`."""

from typing import NamedTuple

import torch

from gradlab.kernels.configs.tiles import table
from gradlab.kernels.runtime.launch_triton import block, places


class Tile(NamedTuple):
    """A program's tile y[M N], its step along K, and CUDA launch options."""

    M: int
    K: int
    N: int
    warps: int = 4
    stages: int = 3


def tile(what: str, like: torch.Tensor, M: int, K: int, N: int) -> Tile:
    """The tile of a product y[M N] = a[M K] b[K N] for operands like `like`, no larger than the product needs.

    Args:
        what: "matmul", "logits", "convolution" or "weight gradient"; "scattered " stands in front of the last two where
            channels are not contiguous.
    """
    where, rows, dtype = places(like.device), table(), str(like.dtype).removeprefix("torch.")
    most = rows.row(what, where, dtype)
    if what == "matmul":
        large = rows.row("large matmul", where, dtype)
        most = large if M * N >= large.least * large.M * large.N else most
    BM, BK, BN = block(M, most.M), block(K, most.K), block(N, most.N)
    return Tile(BM, BK, BN, 4 if BM * BN <= most.small else most.warps, most.stages)


def fill(device: torch.device) -> int:
    """The least number of programs to split a launch into, where its work can be split."""
    return table().split(places(device)).programs


def multiprocessors(device: torch.device) -> int:
    """Those of the GPU; where there is none, of an H100."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def parts(device: torch.device, programs: int, size: int) -> int:
    """Split-K of a weight gradient: the number of parts, each computed by `programs` programs.

    On a CPU the programs of one part, one tap each, run one after another and read the same rows: they find them in the
    second-level cache. It depends on sizes alone, so that any number of threads gives the same bits.

    Args:
        size: bytes of both operands.
    """
    wanted, shared = fill(device) // 2 // programs + 1, table().split(places(device)).bytes
    return max(wanted, -(-size // shared)) if shared else wanted
