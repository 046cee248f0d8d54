"""torch's own functions for each op of the package; imports no jax."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.optim.adam import adam as adam_in_place
from torch.optim.sgd import sgd as sgd_in_place

from gradlab.kernels.adam import BETA1, BETA2, EPS, LR
from gradlab.kernels.private.private_torch import clear_inductor_caches
from gradlab.kernels.runtime import launch_triton
from gradlab.kernels.sgd import LR as SGD_LR
from gradlab.profiling.native.native import Native


def linear(x, w, b=None, *, activation=None):
    """y[M N] = x[M K] w[K N] + b[N], then relu if requested."""
    y = F.linear(x, w.t(), b)
    return F.relu(y) if activation == "relu" else y


def relu(x):
    """y[E] = max(x[E], 0)."""
    return F.relu(x)


def cross_entropy(x, target, a=None, *, z_loss=0.0, softcap=None, **options):
    """The negative log-likelihood of a target under softmax(x[M V]); z-loss and cap are composed, as torch has none."""
    z = x if softcap is None else softcap * torch.tanh(x / softcap)
    y = F.cross_entropy(z, target, a, **options)
    if not z_loss:
        return y
    reduction, ignore_index = options.get("reduction", "mean"), options.get("ignore_index", -100)
    valid = target != ignore_index if target.ndim == 1 else torch.ones_like(target[:, 0], dtype=torch.bool)
    n = torch.where(valid, z_loss * torch.logsumexp(z, 1) ** 2, 0)
    if reduction == "mean":
        return y + n.sum() / valid.sum()
    return y + (n if reduction == "none" else n.sum())


def linear_cross_entropy(h, w, t, b=None, a=None, *, logits_memory=0, **options):
    """cross_entropy of linear, whose logits lie in memory."""
    return cross_entropy(F.linear(h, w.t(), b), t, a, **options)


def adam(p, g, m, v, lr=LR, x=None, *, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=0.0, decoupled=False,
         maximize=False, step=1):  # fmt: skip
    """p'[E], m'[E], v'[E], x'[E]: torch's step works in place, so on copies, as gradlab's does."""
    p, m, v = p.clone(), m.clone(), v.clone()
    maxima = [] if x is None else [x.clone()]
    # The fused step is torch's fastest; it has no derivative and is not for torch.compile, which fuses the plain one.
    recorded = any(isinstance(t, torch.Tensor) and t.requires_grad for t in (p, g, m, v, lr, x))
    fused = not recorded and not torch.compiler.is_compiling()
    # On the parameters' device, so that the host waits for no copy; the fused step wants float32 always.
    dtype = torch.float64 if p.dtype == torch.float64 and not fused else torch.float32
    steps = [torch.full((), step - 1, dtype=dtype, device=p.device)]
    # The fused step reads a learning rate in float32; the plain one wants a number where nothing is recorded.
    if isinstance(lr, torch.Tensor):
        lr = lr.float() if fused else lr
    adam_in_place(
        [p], [g], [m], [v], maxima, steps, foreach=False, fused=fused, differentiable=recorded, amsgrad=bool(maxima),
        beta1=beta1, beta2=beta2, lr=lr, weight_decay=weight_decay, eps=eps, maximize=maximize,
        decoupled_weight_decay=decoupled,
    )  # fmt: skip
    return (p, m, v, *maxima)


def sgd(
    p, g, b, *, lr=SGD_LR, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False, first=False
):
    """p'[E], b'[E]: torch's step works in place, so on copies, as gradlab's does."""
    p, b = p.clone(), b.clone()
    buffers: list[torch.Tensor | None] = [None if first else b]
    # As for Adam: the fused step is torch's fastest, and has no derivative.
    fused = not any(t.requires_grad for t in (p, g, b)) and not torch.compiler.is_compiling()
    sgd_in_place(
        [p],
        [g],
        buffers,
        foreach=False,
        fused=fused,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        maximize=maximize,
    )
    return p, b if not momentum or buffers[0] is None else buffers[0]


def conv2d(x, w, b=None, *, activation=None, **options):
    """y[B F P Q]."""
    y = F.conv2d(x, w, b, **options)
    return F.relu(y) if activation == "relu" else y


def max_pool2d(x, *, kernel_size, **options):
    """y[B C P Q]."""
    return F.max_pool2d(x, kernel_size, **options)


def sigmoid(x):
    """y[E] = 1 / (1 + exp(-x[E]))."""
    return torch.sigmoid(x)


def tanh(x):
    """y[E] = tanh(x[E])."""
    return torch.tanh(x)


def mse_loss(x, t, *, reduction="mean"):
    """The mean of (x[E] - t[E])^2."""
    return F.mse_loss(x, t, reduction=reduction)


def binary_cross_entropy_with_logits(x, t, w=None, p=None, *, reduction="mean"):
    """The negative log-likelihood of t[E] under sigmoid(x[E])."""
    return F.binary_cross_entropy_with_logits(x, t, w, reduction=reduction, pos_weight=p)


NATIVE = {
    "conv2d": Native("F.conv2d", conv2d),
    "linear": Native("F.linear", linear),
    "max_pool2d": Native("F.max_pool2d", max_pool2d),
    "relu": Native("F.relu", relu),
    "mse_loss": Native("F.mse_loss", mse_loss),
    "binary_cross_entropy_with_logits": Native("F.binary_cross_entropy_with_logits", binary_cross_entropy_with_logits),
    "sigmoid": Native("torch.sigmoid", sigmoid),
    "tanh": Native("torch.tanh", tanh),
    "cross_entropy": Native("F.cross_entropy", cross_entropy),
    "linear_cross_entropy": Native("F.linear, F.cross_entropy", linear_cross_entropy),
    "adam": Native("torch.optim.adam.adam", adam),
    "sgd": Native("torch.optim.sgd.sgd", sgd),
}


@contextmanager
def precise() -> Iterator[None]:
    """A context in which float32 products and convolutions are float32 throughout, never TF32."""
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with warnings.catch_warnings():
            # inductor's advice to turn on what is turned off here.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


def widen(array: torch.Tensor) -> torch.Tensor:
    """The array in float32 where it is in half precision, else as it is."""
    return array.float() if array.dtype in (torch.float16, torch.bfloat16) else array


@contextmanager
def fresh(folder: str) -> Iterator[None]:
    """Within it compilers find nothing, neither in memory nor on disk, and keep what they make in `folder`."""
    places = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
    before = {name: os.environ.get(name) for name in places}
    _clear()
    os.environ.update(places)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        _clear()


def _clear() -> None:
    clear_inductor_caches()
    forget()


def forget() -> None:
    """Drop compiled programs and cached memory, so that no case affects another.

    A function compiled for a second shape is compiled for all shapes at once, and for the ninth not at all.
    """
    launch_triton.forget()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
