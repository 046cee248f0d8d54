"""The stream and the matmul that measure torch's ceilings."""

import functools

import torch

from gradlab.profiling.bench.ceilings import Work


def stream(size: int, dtype: str) -> Work:
    """Reads size / 2 bytes and writes as many, into memory already allocated."""
    x = torch.randn(size // 2 // getattr(torch, dtype).itemsize, device=_device()).to(getattr(torch, dtype))
    return Work(functools.partial(torch.neg, x, out=torch.empty_like(x)), 2 * x.nbytes)


def product(n: int, dtype: str) -> Work:
    """a[n n] b[n n], random: zeros would draw less power and run faster."""
    a, b = (torch.randn(n, n, device=_device()).to(getattr(torch, dtype)) for _ in range(2))
    return Work(functools.partial(torch.mm, a, b, out=torch.empty_like(a)), 2 * n**3)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
