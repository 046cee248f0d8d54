"""Cross-entropy of rows of logits, there, back and back again, as Triton kernels."""

import math

import torch
import triton.language as tl

from gradlab.kernels.launch_triton import accumulator, block, interpreted, kernel, launch, op, triton_dtype


# fmt: off
@kernel
def _loss_kernel(
    x_ptr, x_m, x_v,
    t_ptr, t_m,
    y_ptr,
    s_ptr, s_k,
    M, V, IGNORE,
    ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """y[m] = log sum_v exp x[m v] - x[m t[m]]; grid (M/BM); a program owns y[BM] and s[2 BM] = (max, log sum exp(x - max))."""
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    t = tl.load(t_ptr + m * t_m, mask=m < M, other=0)
    valid = (m < M) & (t != IGNORE)
    known = (t >= 0) & (t < V)
    top = tl.full((BM,), float("-inf"), dtype=ACC)
    total = tl.zeros((BM,), dtype=ACC)
    for v0 in range(0, V, BV):
        v = (v0 + tl.arange(0, BV)).to(tl.int64)
        inside = (m < M)[:, None] & (v < V)[None, :]
        x = tl.load(x_ptr + m[:, None] * x_m + v[None, :] * x_v, mask=inside, other=float("-inf")).to(ACC)
        higher = tl.maximum(top, tl.max(x, axis=1))
        # A row that is -inf so far has no maximum to subtract: -inf - -inf would be NaN.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(x - shift[:, None]), axis=1)
        top = higher
    log_sum = tl.log(total)
    x_t = tl.load(x_ptr + m * x_m + t * x_v, mask=valid & known, other=0.0).to(ACC)
    # (max - x_t) first: logits far from zero cancel exactly.
    y = tl.where(valid, log_sum + (top - x_t), 0.0)
    y = tl.where(valid & (known == 0), float("nan"), y)
    tl.store(y_ptr + m, y, mask=m < M)
    tl.store(s_ptr + m, top, mask=m < M)
    tl.store(s_ptr + s_k + m, log_sum, mask=m < M)


@kernel
def _total_kernel(
    y_ptr, y_z, y_m,
    t_ptr, t_z, t_m,
    r_ptr,
    M, IGNORE,
    ACC: tl.constexpr, MEAN: tl.constexpr, BM: tl.constexpr,
):
    """r[z] = (sum_m y[z m], or the mean over rows not ignored; number of those rows); grid (Z); a program owns r[z]."""
    z = tl.program_id(0).to(tl.int64)
    y_ptr += z * y_z
    t_ptr += z * t_z
    total = tl.zeros((BM,), dtype=ACC)
    count = tl.zeros((BM,), dtype=tl.int64)
    for m0 in range(0, M, BM):
        m = (m0 + tl.arange(0, BM)).to(tl.int64)
        total += tl.load(y_ptr + m * y_m, mask=m < M, other=0.0)
        t = tl.load(t_ptr + m * t_m, mask=m < M, other=IGNORE)
        count += ((m < M) & (t != IGNORE)).to(tl.int64)
    y = tl.sum(total, axis=0)
    n = tl.sum(count, axis=0).to(ACC)
    if MEAN:
        y = y / n
    tl.store(r_ptr + 2 * z, y)
    tl.store(r_ptr + 2 * z + 1, n)


@kernel
def _pullback_kernel(
    c_ptr, c_m,
    x_ptr, x_m, x_v,
    s_ptr, s_k, s_m,
    t_ptr, t_m,
    d_ptr, d_m, d_v,
    M, V, IGNORE,
    ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """d[m v] = c[m] (p[m v] - [v = t[m]]), p = softmax x; grid (M/BM * V/BV); a program owns d[BM BV]."""
    tiles_v = tl.cdiv(V, BV)
    m = (tl.program_id(0) // tiles_v * BM + tl.arange(0, BM)).to(tl.int64)
    v = (tl.program_id(0) % tiles_v * BV + tl.arange(0, BV)).to(tl.int64)
    inside = (m < M)[:, None] & (v < V)[None, :]
    c = tl.load(c_ptr + m * c_m, mask=m < M, other=0.0).to(ACC)
    t = tl.load(t_ptr + m * t_m, mask=m < M, other=IGNORE)
    top = tl.load(s_ptr + m * s_m, mask=m < M, other=0.0)
    log_sum = tl.load(s_ptr + s_k + m * s_m, mask=m < M, other=0.0)
    x = tl.load(x_ptr + m[:, None] * x_m + v[None, :] * x_v, mask=inside, other=0.0).to(ACC)
    p = tl.exp((x - top[:, None]) - log_sum[:, None])
    d = c[:, None] * (p - tl.where(v[None, :] == t[:, None], 1.0, 0.0))
    known = (t >= 0) & (t < V)
    d = tl.where(known[:, None], d, float("nan"))
    d = tl.where((t != IGNORE)[:, None], d, 0.0)
    tl.store(d_ptr + m[:, None] * d_m + v[None, :] * d_v, d.to(d_ptr.dtype.element_ty), mask=inside)


@kernel
def _second_kernel(
    u_ptr, u_m, u_v,
    c_ptr, c_m,
    x_ptr, x_m, x_v,
    s_ptr, s_k, s_m,
    t_ptr, t_m,
    e_ptr,
    d_ptr, d_m, d_v,
    M, V, IGNORE,
    ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):
    """e[m] = sum_v u[m v] (p[m v] - [v = t[m]]), d[m v] = c[m] p[m v] (u[m v] - sum_j u[m j] p[m j]); grid (M/BM); a program owns rows BM."""
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    c = tl.load(c_ptr + m * c_m, mask=m < M, other=0.0).to(ACC)
    t = tl.load(t_ptr + m * t_m, mask=m < M, other=IGNORE)
    top = tl.load(s_ptr + m * s_m, mask=m < M, other=0.0)
    log_sum = tl.load(s_ptr + s_k + m * s_m, mask=m < M, other=0.0)
    valid = (m < M) & (t != IGNORE)
    known = (t >= 0) & (t < V)
    mean_u = tl.zeros((BM,), dtype=ACC)
    for v0 in range(0, V, BV):
        v = (v0 + tl.arange(0, BV)).to(tl.int64)
        inside = (m < M)[:, None] & (v < V)[None, :]
        x = tl.load(x_ptr + m[:, None] * x_m + v[None, :] * x_v, mask=inside, other=float("-inf")).to(ACC)
        u = tl.load(u_ptr + m[:, None] * u_m + v[None, :] * u_v, mask=inside, other=0.0).to(ACC)
        p = tl.exp((x - top[:, None]) - log_sum[:, None])
        mean_u += tl.sum(u * p, axis=1)
    u_t = tl.load(u_ptr + m * u_m + t * u_v, mask=valid & known, other=0.0).to(ACC)
    e = tl.where(known, mean_u - u_t, float("nan"))
    tl.store(e_ptr + m, tl.where(valid, e, 0.0), mask=m < M)
    for v0 in range(0, V, BV):
        v = (v0 + tl.arange(0, BV)).to(tl.int64)
        inside = (m < M)[:, None] & (v < V)[None, :]
        x = tl.load(x_ptr + m[:, None] * x_m + v[None, :] * x_v, mask=inside, other=float("-inf")).to(ACC)
        u = tl.load(u_ptr + m[:, None] * u_m + v[None, :] * u_v, mask=inside, other=0.0).to(ACC)
        p = tl.exp((x - top[:, None]) - log_sum[:, None])
        d = c[:, None] * p * (u - mean_u[:, None])
        d = tl.where(known[:, None], d, float("nan"))
        d = tl.where(valid[:, None], d, 0.0)
        tl.store(d_ptr + m[:, None] * d_m + v[None, :] * d_v, d.to(d_ptr.dtype.element_ty), mask=inside)
# fmt: on


def _loss_fake(x, t, ignore_index):
    dtype = accumulator(x.dtype)
    return x.new_empty(x.shape[0], dtype=dtype), x.new_empty((2, x.shape[0]), dtype=dtype)


@op("cross_entropy_loss", fake=_loss_fake)
def loss(x: torch.Tensor, t: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss y[M] of logits x[M V] and classes t[M], and s[2 M]: each row's maximum and log of its sum of exponentials.

    Both in the accumulator's dtype. M V elements read once. A class outside [0, V) gives NaN on CUDA, where asking
    would make the host wait.

    Raises:
        IndexError: on a CPU, a class that is neither in [0, V) nor ignore_index.
    """
    M, V = x.shape
    if not t.is_cuda:
        wrong = ((t < 0) | (t >= V)) & (t != ignore_index)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise IndexError(f"cross_entropy: target[{row}] is {int(t[row])}, wanted a class in [0, {V})")
    y, s = _loss_fake(x, t, ignore_index)
    BM, BV = _tile(x, M, V)
    # fmt: off
    launch(
        _loss_kernel, [-(-M // BM)],
        x, *x.stride(),
        t, *t.stride(),
        y,
        s, s.stride(0),
        M, V, ignore_index,
        ACC=triton_dtype(y.dtype), BM=BM, BV=BV, writes=[y, s],
    )
    # fmt: on
    return y, s


def _total_fake(y, t, ignore_index, mean):
    return y.new_empty((*y.shape[:-1], 2))


@op("cross_entropy_total", fake=_total_fake)
def total(y: torch.Tensor, t: torch.Tensor, ignore_index: int, mean: bool) -> torch.Tensor:
    """(sum or mean of y[M] over rows not ignored, their number n), in y's dtype; 0 / 0 is NaN.

    y and t may have one more axis Z in front: a pair for each of its places.
    """
    r = _total_fake(y, t, ignore_index, mean)
    *Z, M = y.shape
    # fmt: off
    launch(
        _total_kernel, [math.prod(Z)],
        y, *(0, *y.stride())[-2:],
        t, *(0, *t.stride())[-2:],
        r,
        M, ignore_index,
        ACC=triton_dtype(y.dtype), MEAN=mean, BM=block(M, 2**20 if interpreted(y.device) else 4096), writes=[r],
    )
    # fmt: on
    return r


def _pullback_fake(c, x, s, t, ignore_index):
    return x.new_empty(x.shape)


@op("cross_entropy_pullback", fake=_pullback_fake)
def pullback(c: torch.Tensor, x: torch.Tensor, s: torch.Tensor, t: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """dx[M V] = c[M] (softmax(x) - onehot(t)), 0 in ignored rows, in new memory; M V read, M V written."""
    M, V = x.shape
    d = x.new_empty((M, V))
    BM, BV = _tile(x, M, V)
    # fmt: off
    launch(
        _pullback_kernel, [-(-M // BM) * -(-V // BV)],
        c, *c.stride(),
        x, *x.stride(),
        s, *s.stride(),
        t, *t.stride(),
        d, *d.stride(),
        M, V, ignore_index,
        ACC=triton_dtype(s.dtype), BM=BM, BV=BV, writes=[d],
    )
    # fmt: on
    return d


def _second_fake(u, c, x, s, t, ignore_index):
    return s.new_empty(x.shape[0]), x.new_empty(x.shape)


@op("cross_entropy_second", fake=_second_fake)
def second(u: torch.Tensor, c: torch.Tensor, x: torch.Tensor, s: torch.Tensor, t: torch.Tensor,
           ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Pullback of `pullback` for the cotangent u[M V]: dc[M] and the Hessian-vector product dx[M V].

    x and u are read twice, dx is written once: 5 M V elements.
    """
    M, V = x.shape
    e, d = s.new_empty(M), x.new_empty((M, V))
    BM, BV = _tile(x, M, V)
    # fmt: off
    launch(
        _second_kernel, [-(-M // BM)],
        u, *u.stride(),
        c, *c.stride(),
        x, *x.stride(),
        s, *s.stride(),
        t, *t.stride(),
        e,
        d, *d.stride(),
        M, V, ignore_index,
        ACC=triton_dtype(s.dtype), BM=BM, BV=BV, writes=[e, d],
    )
    # fmt: on
    return e, d


def _tile(x: torch.Tensor, M: int, V: int) -> tuple[int, int]:
    """BM, BV: whole rows when interpreted; about 4096 logits a program when compiled, so that a row stays in registers."""
    if interpreted(x.device):
        BV = block(V, 2**14)
        return block(M, 2**20 // BV, least=1), BV
    BV = block(V, 4096)
    return block(M, max(1, 4096 // BV), least=1), BV
