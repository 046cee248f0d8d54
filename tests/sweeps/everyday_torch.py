"""What people differentiate every day, each a right function, and small arguments for it: torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

F, nn = functional, torch.nn
Make = Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]


def _(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _positive(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64) + 0.1


def _labels(rows: int, classes: int) -> torch.Tensor:
    return torch.randint(0, classes, (rows,))


EVERYDAY: dict[str, Make] = {
    "sin": lambda: (torch.sin, (_(5),)),
    "exp": lambda: (torch.exp, (_(3, 4),)),
    "log": lambda: (torch.log, (_positive(3, 4),)),
    "sqrt": lambda: (torch.sqrt, (_positive(6),)),
    "rsqrt": lambda: (torch.rsqrt, (_positive(6),)),
    "pow 2.5": lambda: (lambda x: x**2.5, (_positive(6),)),
    "abs": lambda: (torch.abs, (_(3, 4),)),
    "reciprocal": lambda: (torch.reciprocal, (_positive(5),)),
    "tanh": lambda: (torch.tanh, (_(3, 4),)),
    "sigmoid": lambda: (torch.sigmoid, (_(3, 4),)),
    "relu": lambda: (F.relu, (_(3, 4),)),
    "leaky_relu": lambda: (F.leaky_relu, (_(3, 4),)),
    "elu": lambda: (F.elu, (_(3, 4),)),
    "gelu": lambda: (F.gelu, (_(3, 4),)),
    "silu": lambda: (F.silu, (_(3, 4),)),
    "softplus": lambda: (F.softplus, (_(3, 4),)),
    "hardswish": lambda: (F.hardswish, (_(3, 4),)),
    "mish": lambda: (F.mish, (_(3, 4),)),
    "softmax": lambda: (lambda x: x.softmax(-1), (_(3, 5),)),
    "log_softmax": lambda: (lambda x: x.log_softmax(-1), (_(3, 5),)),
    "logsumexp": lambda: (lambda x: x.logsumexp(-1), (_(3, 5),)),
    "sum": lambda: (lambda x: x.sum(), (_(3, 5),)),
    "mean": lambda: (lambda x: x.mean(-1), (_(3, 5),)),
    "var": lambda: (lambda x: x.var(-1), (_(3, 5),)),
    "std": lambda: (lambda x: x.std(-1), (_(3, 5),)),
    "norm": lambda: (lambda x: x.norm(), (_(3, 5),)),
    "norm of rows": lambda: (lambda x: torch.linalg.vector_norm(x, dim=-1), (_(3, 5),)),
    "normalize": lambda: (F.normalize, (_(5, 4),)),
    "cosine_similarity": lambda: (F.cosine_similarity, (_(5, 4), _(5, 4))),
    "pairwise_distance": lambda: (F.pairwise_distance, (_(5, 4), _(5, 4))),
    "cdist": lambda: (torch.cdist, (_(3, 4), _(5, 4))),
    "prod": lambda: (lambda x: x.prod(-1), (_(3, 4),)),
    "cumsum": lambda: (lambda x: x.cumsum(-1), (_(3, 4),)),
    "cumprod": lambda: (lambda x: x.cumprod(-1), (_(3, 4),)),
    "max": lambda: (lambda x: x.max(-1).values, (_(3, 5),)),
    "amax": lambda: (lambda x: x.amax(-1), (_(3, 5),)),
    "median": lambda: (torch.median, (_(5),)),
    "sort": lambda: (lambda x: x.sort(-1).values, (_(3, 5),)),
    "topk": lambda: (lambda x: x.topk(2, -1).values, (_(3, 5),)),
    "clamp": lambda: (lambda x: x.clamp(-0.5, 0.5), (_(3, 5),)),
    "where": lambda: (lambda x: torch.where(x > 0, x, 0.1 * x), (_(3, 5),)),
    "maximum": lambda: (torch.maximum, (_(3, 5), _(3, 5))),
    "add": lambda: (torch.add, (_(3, 5), _(5))),
    "mul": lambda: (torch.mul, (_(3, 5), _(3, 1))),
    "div": lambda: (torch.div, (_(3, 5), _positive(3, 5))),
    "matmul": lambda: (torch.matmul, (_(3, 5), _(5, 4))),
    "bmm": lambda: (torch.bmm, (_(2, 3, 5), _(2, 5, 4))),
    "einsum": lambda: (lambda x, w: torch.einsum("bij,jk->bik", x, w), (_(2, 3, 4), _(4, 3))),
    "linear": lambda: (F.linear, (_(3, 5), _(4, 5), _(4))),
    "bilinear": lambda: (F.bilinear, (_(3, 4), _(3, 5), _(2, 4, 5))),
    "conv1d": lambda: (F.conv1d, (_(2, 3, 7), _(4, 3, 3))),
    "conv2d": lambda: (F.conv2d, (_(2, 2, 5, 5), _(3, 2, 3, 3))),
    "max_pool2d": lambda: (lambda x: F.max_pool2d(x, 2), (_(2, 2, 4, 4),)),
    "avg_pool2d": lambda: (lambda x: F.avg_pool2d(x, 2), (_(2, 2, 4, 4),)),
    "interpolate": lambda: (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (_(1, 2, 3, 3),)),
    "pad": lambda: (lambda x: F.pad(x, (1, 2)), (_(3, 4),)),
    "layer_norm": lambda: (lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), (_(4, 6), _(6), _(6))),
    "batch_norm": lambda: (lambda x: F.batch_norm(x, None, None, training=True), (_(5, 3),)),
    "group_norm": lambda: (lambda x: F.group_norm(x, 2), (_(2, 4, 3),)),
    "rms_norm": lambda: (lambda x: x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt(), (_(4, 6),)),
    "embedding": lambda: (lambda w: F.embedding(torch.tensor([0, 2, 2]), w), (_(4, 3),)),
    "gather": lambda: (lambda x: x.gather(1, torch.tensor([[0], [2], [1]])), (_(3, 4),)),
    "cross_entropy": lambda: (F.cross_entropy, (_(4, 5), _labels(4, 5))),
    "nll_loss": lambda: (lambda x, t: F.nll_loss(x.log_softmax(-1), t), (_(4, 5), _labels(4, 5))),
    "mse_loss": lambda: (F.mse_loss, (_(4, 5), _(4, 5))),
    "l1_loss": lambda: (F.l1_loss, (_(4, 5), _(4, 5))),
    "smooth_l1_loss": lambda: (F.smooth_l1_loss, (_(4, 5), _(4, 5))),
    "bce with logits": lambda: (F.binary_cross_entropy_with_logits, (_(4, 5), torch.rand(4, 5, dtype=torch.float64))),
    "kl_div": lambda: (lambda x, p: F.kl_div(x.log_softmax(-1), p.softmax(-1)), (_(4, 5), _(4, 5))),
    "attention": lambda: (F.scaled_dot_product_attention, (_(2, 3, 4), _(2, 5, 4), _(2, 5, 4))),
    "inverse": lambda: (torch.linalg.inv, (_(3, 3) + 3 * torch.eye(3, dtype=torch.float64),)),
    "cholesky": lambda: (lambda a: torch.linalg.cholesky(a @ a.T + torch.eye(3, dtype=torch.float64)), (_(3, 3),)),
    "slogdet": lambda: (lambda a: torch.linalg.slogdet(a).logabsdet, (_(3, 3),)),
    "Linear, float32": lambda: (nn.Linear(4, 3), (torch.randn(2, 4),)),
    "LSTMCell": lambda: (nn.LSTMCell(3, 4).double(), (_(2, 3),)),
    "MultiheadAttention": lambda: (_attention(), (_(3, 1, 4),)),
}


def _attention() -> Callable[..., Any]:
    module = nn.MultiheadAttention(4, 2).double()
    return lambda x: module(x, x, x, need_weights=False)[0]


# What is wrong in torch, looked at one by one.
KNOWN = {"kl_div": "NaN where the target's softmax is 0 in float64 (inputs 1000 times larger), where the loss is flat"}


if __name__ == "__main__":
    from tests.sweeps.sweep import Sample, share, summary, sweep

    def seeded(name: str, seed: int) -> Make:
        def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
            torch.manual_seed(seed)
            return EVERYDAY[name]()

        return make

    torch.set_num_threads(1)
    every = [Sample(f"{name}, seed {k}", seeded(name, k)) for name in EVERYDAY for k in range(10)]
    print(summary(sweep(share(every)), KNOWN))
