"""Rows of neighbouring logits whose target is one class, read by one program each: what their Triton kernels do.

Letters are those of gradlab/kernels/cross_entropy.py. Nothing is done for each class because of the target: it is one
logit of the row, whose gradient is put right afterwards. Weights, cotangents, ignored rows and classes out of range are
numbers of a row, and label smoothing, which spreads one number over all classes, is one too.

A program walks over its row in blocks of U B G logits, of which each thread of a GPU takes G neighbours, U times: 128
bits in every load. It keeps a maximum and a sum for each of B groups of lanes, so that threads meet once, behind the
loop. Logits before the first multiple of G in memory and behind the last one are the row's edges, read by themselves.
"""

from typing import Any

import torch
import triton.language as tl

from gradlab.kernels.class_losses.rows_triton import TILE
from gradlab.kernels.common.softcap_triton import capped_logits, capped_logits_and_slope
from gradlab.kernels.runtime.launch_triton import block, interpreted, kernel, sized_for

LOG2_E = tl.constexpr(1.4426950408889634)
# Logits of a row that is walked over: a shorter one is a part of a tile of several.
LONG = 1024


# fmt: off
@kernel
def lowest(ACC: tl.constexpr):
    """The lowest finite number: as a first maximum as good as -inf, but the difference of two is no NaN."""
    least: tl.constexpr = -1.7976931348623157e308 if ACC == tl.float64 else -3.4028234663852886e38
    return tl.full((), least, ACC)


@kernel
def powers(top, ACC: tl.constexpr):
    """(a, c, e) for which exp(z - top) = 2^(fma(z, a, -c) - e): one instruction for each logit beside the power.

    c is top a, rounded, and e what rounding leaves out: no digit of logits far from zero is lost. Where 2^e could
    overflow, all logits but the maximum are so far below it that a = 1, which leaves nothing out, gives 0 as well.
    """
    far: tl.constexpr = 2.0 ** 60 if ACC == tl.float64 else 2.0 ** 31
    a = tl.where(tl.abs(top) < far, tl.full((), LOG2_E, ACC), tl.full((), 1.0, ACC))
    c = top * a
    return a, c, tl.fma(top, a, -c)


@kernel
def row_class(t_ptr, t_m, m, V, TOTAL, IGNORE, FIRST, PART: tl.constexpr):
    """(t, here, in_range, valid): the class of row m from FIRST on; is it of these V, of TOTAL, not ignored."""
    t = tl.load(t_ptr + m * t_m).to(tl.int64)
    in_range = (t >= 0) & (t < TOTAL)
    valid = t != IGNORE
    here = valid & in_range
    if PART:
        t -= FIRST
        here = here & (t >= 0) & (t < V)
    return t, here, in_range, valid


@kernel
def row_at(x_ptr, x_n, x_d, m, D, V, EDGES: tl.constexpr, G: tl.constexpr):
    """(x_ptr, lo, hi): where row m stands, x_ptr[lo:hi], from a multiple of G on, which a compiler sees."""
    offset = m // D * x_n + m % D * x_d
    start = offset // G * G
    lo = 0
    if EDGES:
        lo = (offset - start).to(tl.int32)
    return x_ptr + start, lo, lo + V


@kernel
def group(n: tl.constexpr, B: tl.constexpr, G: tl.constexpr):
    """The first lane of each group of G in n blocks of B groups: [n B 1]."""
    return tl.arange(0, n)[:, None, None] * (B * G) + (tl.arange(0, B) * G)[None, :, None]


@kernel
def block_at(
    x_ptr, i, hi,
    MASKED: tl.constexpr, AGAIN: tl.constexpr, PAIRS: tl.constexpr, ACC: tl.constexpr,
    n: tl.constexpr, B: tl.constexpr, G: tl.constexpr,
):
    """The block x_ptr[i:] of n B G logits, in ACC; if MASKED -inf in groups that end past hi. AGAIN: it is read again.

    PAIRS takes two of bfloat16 as one word, whose halves are floats but for a shift and a mask: taken apart as halves
    the upper one would cost an instruction more.
    """
    keep: tl.constexpr = "evict_last" if AGAIN else "evict_first"
    first = group(n, B, G)
    inside = i + first + (G - 1) < hi
    if PAIRS:
        words = (x_ptr + i).to(tl.pointer_type(tl.int32), bitcast=True)
        at = group(n, B, G // 2) + tl.arange(0, G // 2)[None, None, :]
        if MASKED:
            # Two of -inf.
            word = tl.load(words + at, mask=inside, other=-0x7F0080, eviction_policy=keep)
        else:
            word = tl.load(words + at, eviction_policy=keep)
        halves = tl.join((word << 16).to(tl.float32, bitcast=True), (word & -0x10000).to(tl.float32, bitcast=True))
        x = tl.reshape(halves, (n, B, G))
    else:
        at = i + first + tl.arange(0, G)[None, None, :]
        if MASKED:
            x = tl.load(x_ptr + at, mask=inside, other=float("-inf"), eviction_policy=keep).to(ACC)
        else:
            x = tl.load(x_ptr + at, eviction_policy=keep).to(ACC)
    return x, inside


@kernel
def edges(lo, hi, G: tl.constexpr):
    """(at, inside) of the logits lo:hi that stand in the first group of G, where lo lies, or are left of the last."""
    j = tl.arange(0, 2 * G)
    last = hi // G * G
    at = tl.where(j < G, j, last + j - G)
    return at, (at >= lo) & (at < hi) & ((j < G) | (last >= G))


@kernel
def one_block(
    top, total, gap, x_ptr, i, hi, ref,
    CAP: tl.constexpr, SMOOTH: tl.constexpr, MASKED: tl.constexpr, AGAIN: tl.constexpr, HALF: tl.constexpr,
    PAIRS: tl.constexpr, ACC: tl.constexpr, n: tl.constexpr, B: tl.constexpr, G: tl.constexpr,
):
    """One more block: by group its maximum, sum exp(z - top) 2^e, and if SMOOTH the sum of ref - z."""
    x, inside = block_at(x_ptr, i, hi, MASKED, AGAIN, PAIRS, ACC, n, B, G)
    z = capped_logits(x, CAP, HALF)
    if MASKED & (CAP > 0):
        z = tl.where(inside, z, float("-inf"))
    new = tl.maximum(top, tl.max(tl.max(z, axis=2), axis=0))
    _, _, before = powers(top, ACC)
    a, c, e = powers(new, ACC)
    total *= tl.exp2((top - new) * LOG2_E + (e - before))
    total += tl.sum(tl.sum(tl.exp2(tl.fma(z, a[None, :, None], -c[None, :, None])), axis=2), axis=0)
    if SMOOTH:
        less = ref - z
        if MASKED:
            less = tl.where(inside, less, 0.0)
        gap += tl.sum(tl.sum(less, axis=2), axis=0)
    return new, total, gap


@kernel
def row_softmax(
    x_ptr, lo, hi, ref,
    CAP: tl.constexpr, SMOOTH: tl.constexpr, AGAIN: tl.constexpr, EDGES: tl.constexpr, HALF: tl.constexpr,
    PAIRS: tl.constexpr, ACC: tl.constexpr, U: tl.constexpr, B: tl.constexpr, G: tl.constexpr, TAIL: tl.constexpr,
):
    """(row_max, sum exp(z - row_max), sum of ref - z if SMOOTH) of the logits x_ptr[lo:hi], lo < G."""
    top = tl.zeros((B,), ACC) + lowest(ACC)
    total = tl.zeros((B,), ACC)
    gap = tl.zeros((B,), ACC)
    begin = EDGES * G
    end = begin + tl.maximum(hi - begin, 0) // (U * B * G) * (U * B * G)
    for i in range(begin, end, U * B * G):
        top, total, gap = one_block(
            top, total, gap, x_ptr, i, hi, ref, CAP, SMOOTH, False, AGAIN, HALF, PAIRS, ACC, U, B, G,
        )
    for i in range(end, hi - (G - 1), TAIL * B * G):
        top, total, gap = one_block(
            top, total, gap, x_ptr, i, hi, ref, CAP, SMOOTH, True, AGAIN, HALF, PAIRS, ACC, TAIL, B, G,
        )
    row_max = tl.max(top, axis=0)
    if EDGES:
        at, inside = edges(lo, hi, G)
        z = capped_logits(tl.load(x_ptr + at, mask=inside, other=0.0).to(ACC), CAP, HALF)
        z = tl.where(inside, z, float("-inf"))
        row_max = tl.maximum(row_max, tl.max(z, axis=0))
    _, _, e = powers(top, ACC)
    sum_exp = tl.sum(total * tl.exp2((top - row_max) * LOG2_E - e), axis=0)
    gap = tl.sum(gap, axis=0)
    if EDGES:
        sum_exp += tl.sum(tl.exp2((z - row_max) * LOG2_E), axis=0)
        if SMOOTH:
            gap += tl.sum(tl.where(inside, ref - z, 0.0), axis=0)
    # Nothing but -inf, or nothing at all.
    row_max = tl.where(sum_exp == 0, float("-inf"), row_max)
    return row_max, sum_exp, gap


@kernel
def row_target(
    x_ptr, lo, t, here, row_max, gap, ref, a_ptr, a_v, V, TOTAL,
    EPS: tl.constexpr, CAP: tl.constexpr, HAS_A: tl.constexpr, HALF: tl.constexpr, ACC: tl.constexpr,
):
    """(r_dot, r_sum, x_t): sum_v r (row_max - z), sum_v r and the logit of class t, which is among these if `here`."""
    x_t = tl.load(x_ptr + lo + t, mask=here, other=0.0).to(ACC)
    weight = tl.where(here, tl.full((), 1.0, ACC), 0.0)
    if HAS_A:
        weight = tl.load(a_ptr + t * a_v, mask=here, other=0.0).to(ACC)
    top = tl.where(row_max == float("-inf"), 0.0, row_max)
    r_sum = weight * (1 - EPS)
    # (row_max - z) first: logits far from zero cancel exactly. A class of probability 0 costs nothing.
    r_dot = tl.where(r_sum == 0, 0.0, r_sum * (top - capped_logits(x_t, CAP, HALF)))
    if EPS > 0:
        spread = tl.full((), EPS, ACC) / TOTAL
        r_dot += spread * (V * (top - ref) + gap)
        r_sum += spread * V
    return r_dot, r_sum, x_t


@kernel
def row_reference(x_ptr, lo, CAP: tl.constexpr, SMOOTH: tl.constexpr, HALF: tl.constexpr, ACC: tl.constexpr):
    """A logit from which the sum of all is counted, so that those far from zero lose no digits; 0 unless SMOOTH."""
    ref = tl.full((), 0.0, ACC)
    if SMOOTH:
        ref = capped_logits(tl.load(x_ptr + lo).to(ACC), CAP, HALF)
        ref = tl.where(tl.abs(ref) <= -lowest(ACC), ref, 0.0)
    return ref


@kernel
def gradient(x, a, c, k, less, CAP: tl.constexpr, SMOOTH: tl.constexpr, HALF: tl.constexpr):
    """z' (k 2^(fma(z, a, -c)) - less) of logits x, `less` being one for all classes and 0 unless SMOOTH."""
    z, slope = capped_logits_and_slope(x, CAP, HALF)
    g = tl.exp2(tl.fma(z, a, -c))
    if SMOOTH:
        g = tl.fma(g, k, -less)
    else:
        g *= k
    if CAP > 0:
        g *= slope
    return g


@kernel
def held_softmax(x, inside, ref, CAP: tl.constexpr, SMOOTH: tl.constexpr, HALF: tl.constexpr):
    """`row_softmax` of a whole row x[U B G], and p = exp(z - row_max)."""
    z = capped_logits(x, CAP, HALF)
    if CAP > 0:
        z = tl.where(inside, z, float("-inf"))
    row_max = tl.max(tl.max(tl.max(z, axis=2), axis=0), axis=0)
    p = tl.exp2((z - row_max) * LOG2_E)
    gap = ref * 0
    if SMOOTH:
        gap = tl.sum(tl.sum(tl.sum(tl.where(inside, ref - z, 0.0), axis=2), axis=0), axis=0)
    return row_max, tl.sum(tl.sum(tl.sum(p, axis=2), axis=0), axis=0), gap, p


@kernel
def held_gradient(x, p, k, less, CAP: tl.constexpr, SMOOTH: tl.constexpr, HALF: tl.constexpr):
    """z' (k p - less), what `gradient` is of a row whose p are there."""
    g = p * k
    if SMOOTH:
        g -= less
    if CAP > 0:
        _, slope = capped_logits_and_slope(x, CAP, HALF)
        g *= slope
    return g


@kernel
def row_gradient(
    x_ptr, d_ptr, lo, hi, a, c, k, less,
    CAP: tl.constexpr, SMOOTH: tl.constexpr, EDGES: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
    ACC: tl.constexpr, U: tl.constexpr, B: tl.constexpr, G: tl.constexpr, TAIL: tl.constexpr,
):
    """d_ptr[lo:hi], the gradient of x_ptr[lo:hi], which it may be itself: whoever writes an element has read it."""
    written: tl.constexpr = d_ptr.dtype.element_ty
    begin = EDGES * G
    end = begin + tl.maximum(hi - begin, 0) // (U * B * G) * (U * B * G)
    lanes = tl.arange(0, G)[None, None, :]
    for i in range(begin, end, U * B * G):
        x, _ = block_at(x_ptr, i, hi, False, False, PAIRS, ACC, U, B, G)
        g = gradient(x, a, c, k, less, CAP, SMOOTH, HALF).to(written)
        tl.store(d_ptr + i + group(U, B, G) + lanes, g)
    for i in range(end, hi - (G - 1), TAIL * B * G):
        x_last, inside = block_at(x_ptr, i, hi, True, False, PAIRS, ACC, TAIL, B, G)
        g_last = gradient(x_last, a, c, k, less, CAP, SMOOTH, HALF).to(written)
        tl.store(d_ptr + i + group(TAIL, B, G) + lanes, g_last, mask=inside)
    if EDGES:
        at, at_edge = edges(lo, hi, G)
        x_edge = tl.load(x_ptr + at, mask=at_edge, other=0.0).to(ACC)
        tl.store(d_ptr + at, gradient(x_edge, a, c, k, less, CAP, SMOOTH, HALF).to(written), mask=at_edge)


@kernel
def zero_row(
    d_ptr, lo, hi, EDGES: tl.constexpr, U: tl.constexpr, B: tl.constexpr, G: tl.constexpr,
):
    """d_ptr[lo:hi] = 0."""
    out: tl.constexpr = d_ptr.dtype.element_ty
    for i in range(EDGES * G, hi - (G - 1), U * B * G):
        at = i + group(U, B, G)
        tl.store(d_ptr + at + tl.arange(0, G)[None, None, :], tl.zeros((U, B, G), out), mask=at + (G - 1) < hi)
    if EDGES:
        at_edge, inside = edges(lo, hi, G)
        tl.store(d_ptr + at_edge, tl.zeros((2 * G,), out), mask=inside)
# fmt: on


def long_rows(x: torch.Tensor, t: torch.Tensor | None, a: torch.Tensor | None, smoothing: float) -> bool:
    """Whether rows of logits x[N V D] are walked over: long ones of neighbours, whose targets are numbers of a row."""
    return t is not None and not (smoothing and a is not None) and x.stride(1) == 1 and LONG <= x.shape[1] < 2**30


def row_tile(x: torch.Tensor, warps: int) -> dict[str, Any]:
    """How a program of so many warps walks over a row of x[N V D]: 64 logits a thread at a time, 32 of float64."""
    N, V, D = x.shape
    if sized_for(x.device) == "cpu":
        U = block(V, TILE)
        return {"EDGES": False, "HALF": False, "PAIRS": False, "U": U, "B": 1, "G": 1, "TAIL": U}
    G = 16 // x.element_size()
    B = 32 * warps
    U = block(V // (B * G), 64 // G if G > 2 else 16, least=1)
    parted = V % G != 0 or (N > 1 and x.stride(0) % G != 0) or (D > 1 and x.stride(2) % G != 0)
    left = -(-((V - parted * G) % (U * B * G)) // (B * G))
    # What is left of whole blocks goes in blocks of TAIL B groups, each of which costs as much as 3 more.
    tails = [1 << n for n in range(U.bit_length())]
    return {
        "EDGES": parted,
        "HALF": x.element_size() == 2,
        # The interpreter has them as float32.
        "PAIRS": x.dtype == torch.bfloat16 and x.data_ptr() % 16 == 0 and not interpreted(x.device),
        "U": U,
        "B": B,
        "G": G,
        "TAIL": min(tails, key=lambda n: -(-left // n) * (n + 3)),
    }


def held_tile(x: torch.Tensor, most: int) -> tuple[int, dict[str, Any]] | None:
    """Warps of a program that holds a whole row of x[N V D] in its registers, as one block; None past `most` logits."""
    V = x.shape[1]
    if sized_for(x.device) == "cpu":
        return (1, {**row_tile(x, 1), "U": block(V, most)}) if V <= most else None
    lanes = block(V, most)
    warps = max(1, min(8, lanes // 2048))
    how = row_tile(x, warps)
    if V > most or how["EDGES"]:
        return None
    return warps, {**how, "U": max(1, lanes // (how["B"] * how["G"]))}
