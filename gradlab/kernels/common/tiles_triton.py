"""Tile sizes of matmul-like kernels, for CUDA and for CPUs, from the table in `kernels/configs`."""

import math
from typing import NamedTuple

import torch

from gradlab.kernels.configs.tiles import table
from gradlab.kernels.runtime.launch_triton import block, places, sized_for

# Of a product that is split along K, in steps of a tile: the fewest of a part, what a second launch costs, and elements
# of partial sums that are written and read in the time of one.
_FEWEST_STEPS, _STEPS_OF_A_LAUNCH, _ELEMENTS_A_STEP = 4, 16, 2**17


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


def product_parts(device: torch.device, tiles: int, elements: int, steps: int) -> tuple[int, int]:
    """Split-K of a product y: the number of parts, and the steps along K of each; 1 and all of them on a CPU.

    Parts are taken where tiles leave half of a GPU's multiprocessors idle and time is saved, by sizes and the table
    alone. A tile's step takes about 512 cycles in every dtype. With S parts a program has 1/S of the steps. Their sums,
    8 S bytes for each element, written and read at 16 bytes a cycle by each of 128 multiprocessors, take S elements /
    2^17 steps; to launch a second kernel takes 16 more. The sum of both is least at S^2 = 2^17 steps / elements.

    Args:
        tiles: programs of the product as a whole.
        elements: of y.
        steps: along K, of a tile as a whole.
    """
    # One wave of programs, each of no fewer steps than fill its pipeline.
    most = min(fill(device) // 4 // max(1, tiles), steps // _FEWEST_STEPS)
    if most < 2 or not elements or sized_for(device) == "cpu":
        return 1, steps
    each = -(-steps // min(most, max(1, math.isqrt(steps * _ELEMENTS_A_STEP // elements))))
    parts = -(-steps // each)
    worth = each + parts * elements // _ELEMENTS_A_STEP + _STEPS_OF_A_LAUNCH < steps
    return (parts, each) if worth else (1, steps)
