"""What a program of an Adam step does, wherever its tensor's addresses and scalars came from, in Triton."""

import triton.language as tl

from gradlab.kernels.common.rounding_triton import key_at, mixed, nearest, random_bits, stochastic
from gradlab.kernels.optimizers.multi_tensor_triton import aligned, masked_load, masked_store, times
from gradlab.kernels.runtime.launch_triton import kernel


# fmt: off
@kernel
def _step_chunk(
    p_ptr, g_ptr, m_ptr, v_ptr, x_ptr, w_ptr,
    e, E, has_x,
    beta1, beta2, eps, weight_decay, step_size, correction2, sign, decay_factor,
    key0, key1,
    ACC: tl.constexpr, AMSGRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, FULL: tl.constexpr,
):
    """p', m', v', x', w' of the elements e, masked by e < E unless FULL."""
    p = masked_load(p_ptr, e, E, ACC, FULL)
    if MASTER != "":
        # A parameter that differs from its rounded master was changed outside of the optimizer, and wins.
        w = masked_load(w_ptr, e, E, ACC, FULL)
        p = tl.where(nearest(w, MASTER) == p, w, p)
    g = masked_load(g_ptr, e, E, ACC, FULL)
    m = masked_load(m_ptr, e, E, ACC, FULL)
    v = masked_load(v_ptr, e, E, ACC, FULL)
    h = sign * g + times(weight_decay, p)
    m = m + (1 - beta1).to(ACC) * (h - m)
    v = beta2.to(ACC) * v + (1 - beta2).to(ACC) * h * h
    q = v
    bits = e
    if STOCHASTIC:
        bits = random_bits(e, key0, key1)
    if AMSGRAD:
        if has_x:
            x = masked_load(x_ptr, e, E, ACC, FULL)
            # NaN in x or v gives NaN.
            q = tl.where((x >= v) | (x != x), x, v)
            if STOCHASTIC:
                masked_store(x_ptr, e, E, stochastic(q.to(tl.float32), mixed(bits) & 0xFFFF), FULL)
            else:
                masked_store(x_ptr, e, E, q, FULL)
    p = decay_factor * p - step_size * m / (tl.sqrt(q / correction2) + eps)
    if MASTER != "":
        masked_store(w_ptr, e, E, p, FULL)
        masked_store(p_ptr, e, E, nearest(p, MASTER), FULL)
    else:
        masked_store(p_ptr, e, E, p, FULL)
    if STOCHASTIC:
        masked_store(m_ptr, e, E, stochastic(m.to(tl.float32), bits & 0xFFFF), FULL)
        masked_store(v_ptr, e, E, stochastic(v.to(tl.float32), bits >> 16), FULL)
    else:
        masked_store(m_ptr, e, E, m, FULL)
        masked_store(v_ptr, e, E, v, FULL)


@kernel
def step(
    p_ptr, g_ptr, m_ptr, v_ptr, x_ptr, w_ptr,
    start, E, whole,
    beta1, beta2, eps, weight_decay, step_size, correction2, sign, decay,
    lr_ptr, step_ptr, key,
    scale_ptr, found_ptr, clip_ptr,
    ACC: tl.constexpr, AMSGRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    RATES: tl.constexpr, STEPS: tl.constexpr, SCALED: tl.constexpr, FOUND: tl.constexpr, CLIPPED: tl.constexpr,
    ALIGNED: tl.constexpr, BE: tl.constexpr,
):
    """p', m', v', x' = max(x, v'), w' of the BE elements from `start`, of a tensor of E elements.

    A pointer of address 0 is of an array that the tensor does not have; scalars are float64. `whole` says that accesses
    may be without a mask where all elements are there; ALIGNED, that addresses are multiples of 16 bytes then.
    """
    if RATES:
        # Where the learning rate is on the device, the scalars were computed for a rate of 1.
        rate = tl.load(lr_ptr, mask=lr_ptr.to(tl.int64) != 0, other=1.0)
        step_size = step_size * rate
        decay = decay * rate
    key0 = 0
    key1 = 0
    if STEPS:
        # Where the step's number is on the device, the scalars were computed without bias corrections.
        has_step = step_ptr.to(tl.int64) != 0
        number = tl.load(step_ptr, mask=has_step, other=1.0)
        count = number.to(tl.float64)
        step_size = tl.where(has_step, step_size / (1 - tl.exp(count * tl.log(beta1))), step_size)
        correction2 = tl.where(has_step, 1 - tl.exp(count * tl.log(beta2)), correction2)
        if STOCHASTIC:
            key0, key1 = key_at(tl.cast(key, tl.int64), number, start)
    sign = sign.to(ACC)
    if SCALED:
        sign = sign / tl.load(scale_ptr).to(ACC)
    if CLIPPED:
        sign = sign * tl.load(clip_ptr + 1).to(ACC)
    if FOUND:
        # GradScaler found a gradient that is not finite: no element changes.
        E = tl.where(tl.load(found_ptr) == 0, E, 0)
    has_x = x_ptr.to(tl.int64) != 0
    eps = eps.to(ACC)
    weight_decay = weight_decay.to(ACC)
    step_size = step_size.to(ACC)
    correction2 = correction2.to(ACC)
    decay_factor = (1 - decay).to(ACC)
    e = start + tl.arange(0, BE)
    # A mask that depends on a loaded number keeps Triton from vectorizing loads: only a tensor's last chunk has one.
    if whole & (start + BE <= E):
        _step_chunk(
            aligned(p_ptr, ALIGNED), aligned(g_ptr, ALIGNED), aligned(m_ptr, ALIGNED),
            aligned(v_ptr, ALIGNED), aligned(x_ptr, ALIGNED), aligned(w_ptr, ALIGNED), e, E, has_x,
            beta1, beta2, eps, weight_decay, step_size, correction2, sign, decay_factor, key0, key1,
            ACC, AMSGRAD, MASTER, STOCHASTIC, True,
        )
    else:
        _step_chunk(
            p_ptr, g_ptr, m_ptr, v_ptr, x_ptr, w_ptr, e, E, has_x,
            beta1, beta2, eps, weight_decay, step_size, correction2, sign, decay_factor, key0, key1,
            ACC, AMSGRAD, MASTER, STOCHASTIC, False,
        )
# fmt: on
