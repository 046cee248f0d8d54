"""What linear_cross_entropy's backwards share: the cotangent of a tile of logits, and memory for gradients, on Triton."""

import torch
import triton.language as tl

from gradlab.kernels.runtime.launch_triton import kernel


# fmt: off
@kernel
def cotangent(
    x, v, m, z,
    g_ptr, g_z, g_m, g_i,
    c_ptr, c_z, c_v,
    t_ptr, t_z, t_m,
    s_ptr, s_z, s_m, s_i,
    M, V, FIRST, IGNORE, CLASSES,
    ACC: tl.constexpr, WEIGHTS: tl.constexpr, HARD: tl.constexpr, SPREAD: tl.constexpr,
):
    """(p, r, g, a, R)[m v] of a tile of z: softmax, targets, g = a p - dy r, a = dy R + dl, sum of targets; NaN in unknown rows, 0 in ignored ones."""
    t = tl.load(t_ptr + z * t_z + m * t_m, mask=m < M, other=0).to(tl.int64)
    g_ptr += z * g_z + m * g_m
    s_ptr += z * s_z + m * s_m
    dy = tl.load(g_ptr, mask=m < M, other=0.0).to(ACC)
    dl = tl.load(g_ptr + g_i, mask=m < M, other=0.0).to(ACC)
    top = tl.load(s_ptr, mask=m < M, other=0.0)
    log_sum = tl.load(s_ptr + s_i, mask=m < M, other=0.0)
    R = tl.load(s_ptr + 2 * s_i, mask=m < M, other=0.0)
    c = tl.where(v < V, 1.0, 0.0).to(ACC)
    if WEIGHTS:
        c = tl.load(c_ptr + z * c_z + v * c_v, mask=v < V, other=0.0).to(ACC)
    p = tl.exp((x - top[:, None]) - log_sum[:, None])
    # A number between two constants would be float32.
    hit = tl.where((v + FIRST)[None, :] == t[:, None], 1.0, 0.0).to(ACC)
    r = c[None, :] * (HARD * hit + SPREAD)
    known = ((t >= 0) & (t < CLASSES))[:, None]
    valid = (t != IGNORE)[:, None]
    p = tl.where(valid, tl.where(known, p, float("nan")), 0.0)
    r = tl.where(valid, r, 0.0)
    a = (dy * R + dl)[:, None]
    g = tl.where(valid, a * p - dy[:, None] * r, 0.0)
    return p, r, g, tl.where(valid, a, 0.0), R[:, None]
# fmt: on


def empties(
    h: torch.Tensor, w: torch.Tensor, need_h: bool, need_w: bool, need_b: bool, by_columns: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New memory for dh, dw and db; without an element where it is not needed."""
    Z, K, V = w.shape
    dh = h.new_empty(h.shape if need_h else 0)
    db = h.new_empty((Z, V) if need_b else 0)
    if not need_w:
        return dh, h.new_empty(0), db
    return dh, h.new_empty((Z, V, K)).mT if by_columns else h.new_empty((Z, K, V)), db
