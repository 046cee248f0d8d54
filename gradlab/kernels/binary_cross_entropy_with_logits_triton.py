"""The sum of the losses of logits, and the derivatives that its pullbacks are made of, as Triton kernels."""

import torch
import triton.language as tl

from gradlab.kernels.common import reduce_triton
from gradlab.kernels.common.elementwise_triton import elementwise, of_one, operand, tile_load, tile_of, tile_store
from gradlab.kernels.runtime.launch_triton import accumulator, kernel, op, triton_dtype
from gradlab.kernels.runtime.sharding import elementwise as elementwise_text
from gradlab.kernels.runtime.sharding import sums_rows


# fmt: off
@kernel
def _log1p(z):
    """log(1 + z) for 0 <= z <= 1, with all digits of a small z.

    What 1 + z rounds off, the quotient puts back (Kahan).
    """
    u = 1 + z
    return tl.where(u == 1, z, tl.log(u) * (z / tl.where(u == 1, 1.0, u - 1)))


@kernel
def _term(x, t, p, J: tl.constexpr, K: tl.constexpr):
    """The derivative of the loss, J times by the logit and K times by the target."""
    z = tl.exp(-tl.abs(x))
    yes = tl.where(x >= 0, 1.0, z) / (1 + z)
    no = tl.where(x >= 0, z, 1.0) / (1 + z)
    # Terms of one sign, each with all its digits: (1 - t) x + log(1 + exp(-x)) would cancel where the answer is sure.
    if J == 0 and K == 0:
        both = _log1p(z)
        g = (1 - t) * (tl.maximum(x, 0.0) + both) + p * t * (tl.maximum(-x, 0.0) + both)
    elif J == 1 and K == 0:
        g = (1 - t) * yes - p * t * no
    elif J == 0 and K == 1:
        g = (p - 1) * (tl.maximum(-x, 0.0) + _log1p(z)) - x
    elif J == 1 and K == 1:
        g = -yes - p * no
    elif J == 2 and K == 0:
        g = ((1 - t) + p * t) * yes * no
    else:
        g = (p - 1) * yes * no
    return g


@kernel
def _losses_kernel(
    x_ptr, x_z, x_e,
    t_ptr, t_z, t_e,
    w_ptr, w_z, w_e,
    p_ptr, p_z, p_e,
    s_ptr,
    E, CHUNK, I, DEN,
    HAS_W: tl.constexpr, HAS_P: tl.constexpr, ACC: tl.constexpr, BE: tl.constexpr,
):
    """s[z i] = sum_e w[z e] G00[z e] / DEN over the i-th CHUNK of e; grid (Z * I); a program owns s[z i]."""
    z = (tl.program_id(0) // I).to(tl.int64)
    start = (tl.program_id(0) % I).to(tl.int64) * CHUNK
    total = tl.zeros((BE,), dtype=ACC)
    for e0 in range(0, CHUNK, BE):
        step = e0 + tl.arange(0, BE)
        e = start + step
        inside = (step < CHUNK) & (e < E)
        x = tl.load(x_ptr + z * x_z + e * x_e, mask=inside, other=0.0).to(ACC)
        t = tl.load(t_ptr + z * t_z + e * t_e, mask=inside, other=0.0).to(ACC)
        p = tl.full((BE,), 1.0, ACC)
        if HAS_P:
            p = tl.load(p_ptr + z * p_z + e * p_e, mask=inside, other=0.0).to(ACC)
        g = _term(x, t, p, 0, 0)
        if HAS_W:
            g *= tl.load(w_ptr + z * w_z + e * w_e, mask=inside, other=0.0).to(ACC)
        # Masked after the logarithm: a logit of 0 has a loss.
        total += tl.where(inside, g, 0.0)
    tl.store(s_ptr + tl.program_id(0), tl.sum(total, axis=0) / DEN)


@kernel
def _derivative_kernel(
    c_ptr, c_m, c_n,
    x_ptr, x_m, x_n,
    t_ptr, t_m, t_n,
    w_ptr, w_m, w_n,
    p_ptr, p_m, p_n,
    y_ptr, y_m, y_n,
    DEN, M, N,
    J: tl.constexpr, K: tl.constexpr, HAS_C: tl.constexpr, HAS_W: tl.constexpr, HAS_P: tl.constexpr,
    ACC: tl.constexpr,
    ONE: tl.constexpr, RAGGED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):
    """y[m n] = c[m n] w[m n] G_JK[m n] / DEN; grid (M/BM * N/BN); a program owns y[BM BN]."""
    m, n, inside, whole = tile_of(M, N, BM, BN)
    x = tile_load(x_ptr + m * x_m + n * x_n, inside, whole, RAGGED).to(ACC)
    t = tile_load(t_ptr + m * t_m + n * t_n, inside, whole, RAGGED).to(ACC)
    p = tl.full((BM, BN), 1.0, ACC)
    if HAS_P:
        p = tile_load(p_ptr + m * p_m + n * p_n, inside, whole, RAGGED).to(ACC)
    y = _term(x, t, p, J, K)
    if HAS_W:
        y *= tile_load(w_ptr + m * w_m + n * w_n, inside, whole, RAGGED).to(ACC)
    if HAS_C:
        y *= operand(c_ptr, c_m, c_n, m, n, inside, whole, ONE, RAGGED).to(ACC)
    y = y / DEN
    tile_store(y_ptr + m * y_m + n * y_n, y, inside, whole, RAGGED)
# fmt: on


def _losses_fake(x, t, w, p, batch_axes, den):
    return x.new_empty(x.shape[:batch_axes])


@op("binary_cross_entropy", fake=_losses_fake, sharding=sums_rows("x, t, w, p -> y"))
def losses(
    x: torch.Tensor, t: torch.Tensor, w: torch.Tensor | None, p: torch.Tensor | None, batch_axes: int, den: int
) -> torch.Tensor:
    """y = the sum of w G00 over all but the first `batch_axes` axes, over `den`. 2 to 4 E read."""
    flags = {"HAS_W": w is not None, "HAS_P": p is not None}
    return reduce_triton.sum_rows(_losses_kernel, [x, t, w, p], batch_axes, den, **flags)


def _derivative_fake(c, x, t, w, p, j, k, den):
    return torch.empty_like(x)


@op("binary_cross_entropy_derivative", fake=_derivative_fake, sharding=elementwise_text("c, x, t, w, p -> y"))
def derivative(
    c: torch.Tensor | None,
    x: torch.Tensor,
    t: torch.Tensor,
    w: torch.Tensor | None,
    p: torch.Tensor | None,
    j: int,
    k: int,
    den: int,
) -> torch.Tensor:
    """y = c w G_jk / den, one by one, ones for c or w that is None; laid out as x. Up to 5 E read, E written."""
    y = torch.empty_like(x)
    tensors = [x if v is None else v for v in (c, x, t, w, p)]
    flags = {"ONE": c is not None and of_one(c), "HAS_C": c is not None, "HAS_W": w is not None, "HAS_P": p is not None}
    elementwise(
        _derivative_kernel, [*tensors, y], den, writes=[y], J=j, K=k, **flags, ACC=triton_dtype(accumulator(x.dtype))
    )
    return y
