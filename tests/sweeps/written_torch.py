"""Code as people write it around torch, each right, with the habits that a check may stumble over."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.nn.utils import parametrizations

F, nn = functional, torch.nn
Made = tuple[Callable[..., Any], tuple[Any, ...]]


def _(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Scaled(torch.autograd.Function):
    """x * factor, the factor a number of Python's."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float, mode: str = "plain") -> torch.Tensor:
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        return dy * ctx.factor, None, None


class Needed(torch.autograd.Function):
    """x @ w, and only the gradients that are asked for."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, w = ctx.saved_tensors
        return dy @ w.T if ctx.needs_input_grad[0] else None, x.T @ dy if ctx.needs_input_grad[1] else None


class Clamped(torch.autograd.Function):
    """A straight-through clamp that lies to nobody: its forward is the identity inside the range that is used."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-100, 100)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return dy * (x.abs() <= 100)


class ThroughNumPy(torch.autograd.Function):
    """Host work on both ways, as scipy's functions are wrapped."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        import numpy as np

        ctx.save_for_backward(x)
        return torch.from_numpy(np.arctan(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        import numpy as np

        (x,) = ctx.saved_tensors
        return torch.from_numpy(dy.numpy() / (1 + np.square(x.numpy())))


class TwoResults(torch.autograd.Function):
    """The values and the places of a maximum, the places marked."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> Any:
        values, places = x.max(-1)
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(places)
        ctx.shape = x.shape
        return values, places

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, _: Any) -> Any:
        (places,) = ctx.saved_tensors
        return dy.new_zeros(ctx.shape).scatter(-1, places[..., None], dy[..., None])


class InPlace(torch.autograd.Function):
    """exp that keeps its result."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return dy * y


class Single(torch.autograd.Function):
    """A kernel that knows float32 alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise TypeError(f"wanted float32, got {x.dtype}")
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        return 2 * dy * ctx.saved_tensors[0]


class Output(NamedTuple):
    """What a model gives."""

    logits: torch.Tensor
    hidden: torch.Tensor


@dataclasses.dataclass
class Loss:
    """What torch knows as no container."""

    value: torch.Tensor


class Block(nn.Module):
    """A transformer's block with a causal mask in a buffer."""

    def __init__(self, width: int = 4, length: int = 3) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)
        self.register_buffer("mask", torch.ones(length, length, dtype=torch.bool).tril())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        return x + self.out(scores.masked_fill(~self.mask, -torch.inf).softmax(-1) @ v)


class Average(nn.Module):
    """Counts its calls and keeps a running mean that its result does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.1)
        return x.tanh()


class Memory(nn.Module):
    """A cache that is dropped when another shape comes."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[-1]
        if n not in self.cache:
            self.cache[n] = torch.arange(n, dtype=x.dtype).cos()
        return x * self.cache[n]


def rope(x: torch.Tensor, base: float = 10000.0) -> torch.Tensor:
    """Rotary embeddings, through complex numbers."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    angles = torch.outer(torch.arange(x.shape[-2]), base ** -torch.linspace(0, 1, pairs.shape[-1])).to(x.dtype)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def filled(x: torch.Tensor) -> torch.Tensor:
    """Written row by row in place."""
    y = torch.zeros_like(x)
    for i in range(len(x)):
        y[i] = x[i].sin() + (y[i - 1] if i else 0)
    return y


def sinkhorn(x: torch.Tensor, turns: int = 3) -> torch.Tensor:
    """A loop of normalisations."""
    for _ in range(turns):
        x = x - x.logsumexp(-1, keepdim=True)
        x = x - x.logsumexp(-2, keepdim=True)
    return x.exp()


def newton(a: torch.Tensor) -> torch.Tensor:
    """A loop that ends when it has settled: the number of turns depends on the values."""
    y = torch.ones_like(a)
    while (y * y - a).abs().max() > 1e-13:
        y = 0.5 * (y + a / y)
    return y


def masked_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A mask as an argument; a row that is all masked would be NaN."""
    return (q @ k.mT).masked_fill(mask, -torch.inf).softmax(-1) @ v


def contrastive(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """InfoNCE: the labels are the batch's own places."""
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    return F.cross_entropy(a @ b.T / 0.1, torch.arange(len(a)))


def mixture(x: torch.Tensor, gate: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """A mixture of experts: the best two of each token, by indices."""
    weight, which = (x @ gate).softmax(-1).topk(2, -1)
    y = torch.zeros_like(x)
    for e in range(len(w)):
        rows, slot = torch.where(which == e)
        y = y.index_add(0, rows, weight[rows, slot, None] * (x[rows] @ w[e]))
    return y


def losses(x: torch.Tensor, *, weight: float = 0.5) -> dict[str, Any]:
    """A dictionary with a number, a string and an integer beside the tensors."""
    return {"loss": x.square().mean(), "l1": weight * x.abs().mean(), "step": 3, "name": "train", "best": x.argmax()}


def checkpointed(x: torch.Tensor) -> torch.Tensor:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(lambda t: t.tanh() * t, x, use_reentrant=False)


def ragged(xs: list[torch.Tensor]) -> torch.Tensor:
    """A list of tensors of unequal lengths."""
    return torch.stack([x.logsumexp(0) for x in xs])


def state(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (batch["x"] * batch["mask"]).sum() / batch["mask"].sum()


def penalty(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """A gradient inside: WGAN's penalty."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    (g,) = torch.autograd.grad((x @ w).tanh().sum(), x, create_graph=True)
    return (g.norm(dim=-1) - 1).square().mean()


def ctc(x: torch.Tensor) -> torch.Tensor:
    """Labels and lengths made inside."""
    return F.ctc_loss(x.log_softmax(-1), torch.tensor([[1, 2]]), torch.tensor([len(x)]), torch.tensor([2]))


def double(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return module.double()


def scan(x: torch.Tensor) -> list[torch.Tensor]:
    h, out = torch.zeros_like(x[0]), []
    for row in x:
        h = torch.tanh(h + row)
        out.append(h)
    return out


def sparse(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    a = torch.sparse_coo_tensor(torch.tensor([[0, 1, 2], [2, 0, 1]]), values, (3, 3))
    return torch.sparse.mm(a, x)


def jagged(x: torch.Tensor) -> torch.Tensor:
    return torch.segment_reduce(x, "sum", lengths=torch.tensor([2, 3]))


def graph(x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Messages along edges."""
    return torch.zeros_like(x).scatter_add(0, edges[1][:, None].expand(-1, x.shape[1]), x[edges[0]])


def quantised(x: torch.Tensor) -> torch.Tensor:
    """Rounded for the forward, and a loss that says so by detaching."""
    return x + (x.round() - x).detach() * 0


def seeded_dropout(x: torch.Tensor) -> torch.Tensor:
    """Dropout that draws from a generator of its own."""
    keep = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype) > 0.3
    return x * keep / 0.7


def pinned_rows(x: torch.Tensor) -> torch.Tensor:
    assert x.shape[0] == 4, "this works for a batch of four"
    return x.reshape(2, 2, -1).softmax(0)


def written_over(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[y < 0] *= 0.1
    y[..., 0] = y[..., 0].exp()
    return y.relu_()


def unused(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x.sin()


WRITTEN: dict[str, Callable[[], Made]] = {
    "a number beside tensors": lambda: (lambda x: Scaled.apply(x, 1.5), (_(3, 4),)),
    "needs_input_grad": lambda: (Needed.apply, (_(3, 4), _(4, 2))),
    "far kinks": lambda: (Clamped.apply, (_(3, 4),)),
    "through NumPy": lambda: (ThroughNumPy.apply, (_(3, 4),)),
    "a marked result": lambda: (TwoResults.apply, (_(3, 4),)),
    "once differentiable": lambda: (InPlace.apply, (_(3, 4),)),
    "float32 alone": lambda: (Single.apply, (_(3, 4).float(),)),
    "a NamedTuple": lambda: (lambda x: Output(x.sin(), x.cos()), (_(3, 4),)),
    "a dictionary": lambda: (losses, (_(3, 4),)),
    "a dictionary in": lambda: (state, ({"x": _(3, 4), "mask": (_(3, 4) > -1).double()},)),
    "a list in": lambda: (ragged, ([_(3), _(5), _(1)],)),
    "a list out": lambda: (scan, (_(3, 4),)),
    "a block with a buffer": lambda: (double(Block()), (_(2, 3, 4),)),
    "BatchNorm, training": lambda: (double(nn.BatchNorm1d(4)), (_(5, 4),)),
    "BatchNorm, evaluating": lambda: (double(nn.BatchNorm1d(4)).eval(), (_(5, 4),)),
    "BatchNorm, float32": lambda: (nn.BatchNorm1d(4), (_(5, 4).float(),)),
    "InstanceNorm": lambda: (double(nn.InstanceNorm1d(3, affine=True)), (_(2, 3, 5),)),
    "Dropout, evaluating": lambda: (nn.Sequential(nn.Dropout(), nn.Tanh()).eval(), (_(3, 4),)),
    "counts its calls": lambda: (Average(), (_(3, 4),)),
    "a cache": lambda: (Memory(), (_(3, 4),)),
    "weight norm": lambda: (double(parametrizations.weight_norm(nn.Linear(4, 3))), (_(2, 4),)),
    "spectral norm, evaluating": lambda: (double(parametrizations.spectral_norm(nn.Linear(4, 3))).eval(), (_(2, 4),)),
    "orthogonal": lambda: (double(parametrizations.orthogonal(nn.Linear(4, 4))), (_(2, 4),)),
    "tied weights": lambda: (_tied(), (_(2, 4),)),
    "frozen weights": lambda: (_frozen(), (_(2, 4),)),
    "GRU": lambda: (double(nn.GRU(3, 4, batch_first=True)), (_(2, 3, 3),)),
    "an encoder's layer": lambda: (double(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)).eval(), (_(2, 3, 4),)),
    "EmbeddingBag": lambda: (_bag(), (_(5, 3),)),
    "rotary": lambda: (rope, (_(2, 3, 4),)),
    "rows in place": lambda: (filled, (_(3, 4),)),
    "written over": lambda: (written_over, (_(3, 4),)),
    "Sinkhorn": lambda: (sinkhorn, (_(3, 3),)),
    "Newton": lambda: (newton, (_(3).abs() + 0.5,)),
    "a masked attention": lambda: (masked_attention, (_(3, 4), _(5, 4), _(5, 2), _mask(3, 5))),
    "flash with a mask": lambda: (
        functools.partial(F.scaled_dot_product_attention, is_causal=True), (_(1, 2, 3, 4), _(1, 2, 3, 4), _(1, 2, 3, 4))),
    "contrastive": lambda: (contrastive, (_(4, 3), _(4, 3))),
    "triplet": lambda: (F.triplet_margin_loss, (_(4, 3), _(4, 3), _(4, 3))),
    "a mixture of experts": lambda: (mixture, (_(5, 4), _(4, 3), _(3, 4, 4))),
    "checkpointed": lambda: (checkpointed, (_(3, 4),)),
    "a gradient inside": lambda: (penalty, (_(3, 4), _(4, 2))),
    "ctc": lambda: (ctc, (_(5, 1, 4),)),
    "sparse values": lambda: (sparse, (_(3, 2), _(3))),
    "segments": lambda: (jagged, (_(5),)),
    "a graph": lambda: (graph, (_(4, 3), torch.tensor([[0, 1, 2, 3, 0], [1, 1, 0, 2, 3]]))),
    "detached parts": lambda: (quantised, (_(3, 4),)),
    "a generator of its own": lambda: (seeded_dropout, (_(3, 4),)),
    "a batch of four": lambda: (pinned_rows, (_(4, 3),)),
    "an unused argument": lambda: (unused, (_(3), _(3))),
    "float32 and float64": lambda: (lambda x, w: x.double() @ w, (_(3, 4).float(), _(4, 2))),
    "bfloat16 inside": lambda: (lambda x: (x.bfloat16() * 2).to(x.dtype), (_(3, 4),)),
    "half in, float32 out": lambda: (lambda x: x.float().square().sum(), (_(3, 4).half(),)),
    "sorted": lambda: (lambda x: torch.sort(x, dim=0), (_(4, 3),)),
    "argsort": lambda: (lambda x: x.gather(1, x.argsort(1)).cumsum(1), (_(3, 4),)),
    "unique counts": lambda: (lambda x: x * torch.unique(x.round(), return_counts=True)[1].sum(), (_(3, 4),)),
    "cdist of itself": lambda: (lambda x: torch.cdist(x, x), (_(3, 4),)),
    "cdist, p=1": lambda: (functools.partial(torch.cdist, p=1), (_(3, 4), _(2, 4))),
    "eigenvalues": lambda: (lambda a: torch.linalg.eigvalsh(a + a.T), (_(3, 3),)),
    "eigenvectors, projected": lambda: (lambda a: (v := torch.linalg.eigh(a + a.T)[1][:, :1]) @ v.T, (_(3, 3),)),
    "svdvals": lambda: (torch.linalg.svdvals, (_(3, 4),)),
    "pinv": lambda: (torch.linalg.pinv, (_(4, 3),)),
    "lstsq": lambda: (lambda a, b: torch.linalg.lstsq(a, b).solution, (_(5, 3), _(5, 2))),
    "expm": lambda: (torch.linalg.matrix_exp, (_(3, 3),)),
    "fft": lambda: (lambda x: torch.fft.rfft(x).abs(), (_(3, 8),)),
    "stft": lambda: (lambda x: torch.stft(x, 8, window=torch.hann_window(8, dtype=x.dtype), return_complex=True).abs().square(), (_(32),)),
    "grid_sample": lambda: (lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False), (_(1, 2, 4, 4), _(1, 3, 3, 2))),
    "unfold": lambda: (lambda x: F.unfold(x, 2), (_(1, 2, 4, 4),)),
    "conv_transpose": lambda: (lambda x, w: F.conv_transpose2d(x, w, stride=2), (_(1, 2, 3, 3), _(2, 3, 2, 2))),
    "logcumsumexp": lambda: (lambda x: x.logcumsumexp(-1), (_(3, 4),)),
    "huber": lambda: (F.huber_loss, (_(3, 4), _(3, 4))),
    "label smoothing": lambda: (lambda x: F.cross_entropy(x, torch.tensor([0, 2, -100]), label_smoothing=0.1), (_(3, 4),)),
    "gumbel, seeded": lambda: (lambda x: (x + torch.ones(3, 4, dtype=x.dtype).exponential_(generator=torch.Generator().manual_seed(0)).log()).softmax(-1), (_(3, 4),)),
    "a Normal's log_prob": lambda: (lambda m, s: torch.distributions.Normal(m, s.exp()).log_prob(torch.ones(3)), (_(3), _(3))),
    "a Dirichlet": lambda: (lambda a: torch.distributions.Dirichlet(a.exp()).entropy(), (_(3),)),
    "trapezoid": lambda: (torch.trapezoid, (_(3, 5),)),
    "nested containers": lambda: (lambda p: [p["a"][0] * p["b"], (p["a"][1].sum(),)], ({"a": [_(3), _(2)], "b": _(3)},)),
    "an integer result": lambda: (lambda x: (x.argmax(-1), x.max(-1).values, x > 0), (_(3, 4),)),
    "functional_call": lambda: (_called(), ({"weight": _(3, 4), "bias": _(3)}, _(2, 4))),
    "a jvp inside": lambda: (lambda x: torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1], (_(3),)),
    "a vmap inside": lambda: (lambda x, w: torch.func.vmap(lambda r: (r @ w).tanh())(x), (_(3, 4), _(4, 2))),
    "a hessian inside": lambda: (lambda x: torch.func.hessian(lambda t: t.sin().prod())(x), (_(3),)),
    "a hook": lambda: (_hooked(), (_(2, 4),)),
    "clip of a gradient": lambda: (lambda x: x.clamp_min(1e-12).log(), (_(3, 4).abs(),)),
    "safe division": lambda: (lambda x, y: torch.where(y == 0, 0.0, x / torch.where(y == 0, 1.0, y)), (_(3, 4), _(3, 4))),
    "a norm with an epsilon": lambda: (lambda x: (x.square().sum(-1) + 1e-12).sqrt(), (_(3, 4),)),
    "gelu tanh": lambda: (functools.partial(F.gelu, approximate="tanh"), (_(3, 4),)),
    "swiglu": lambda: (lambda x, w, v: F.silu(x @ w) * (x @ v), (_(2, 3), _(3, 4), _(3, 4))),
    "one number": lambda: (lambda x: x.sin(), (torch.tensor(0.3, dtype=torch.float64),)),
    "no element": lambda: (lambda x: x.sin().sum(), (_(0, 3),)),
    "a transposed input": lambda: (lambda x: x.sin(), (_(3, 4).T,)),
    "an expanded input": lambda: (lambda x, w: x * w, (_(1, 4).expand(3, 4), _(3, 4))),
    "a leaf that needs a gradient": lambda: (torch.sin, (_(3).requires_grad_(),)),
    "a Parameter": lambda: (torch.sin, (nn.Parameter(_(3)),)),
    "under no_grad": lambda: (torch.no_grad()(torch.sin), (_(3),)),
    "under inference_mode": lambda: (torch.inference_mode()(torch.sin), (_(3),)),
    "a scripted sum": lambda: (_traced(), (_(3, 4),)),
    "large": lambda: (lambda x: (x * 1e150).tanh() + x, (_(3, 4),)),
    "tiny": lambda: (lambda x: x * 1e-200, (_(3, 4),)),
    "many orders": lambda: (lambda x: x * torch.logspace(-12, 12, 12, dtype=x.dtype).reshape(3, 4), (_(3, 4),)),
    "ill conditioned": lambda: (lambda x: torch.linalg.solve(torch.diag(torch.logspace(0, -12, 3, dtype=x.dtype)), x), (_(3, 2),)),
}  # fmt: skip


def _mask(rows: int, columns: int) -> torch.Tensor:
    mask = torch.rand(rows, columns) < 0.4
    mask[:, 0] = False
    return mask


def _tied() -> nn.Module:
    module = double(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))
    module[2].weight = module[0].weight
    return module


def _frozen() -> nn.Module:
    module = double(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    module[0].requires_grad_(False)
    return module


def _hooked() -> nn.Module:
    module = double(nn.Linear(4, 3))
    module.register_forward_hook(lambda m, args, y: y.sin())
    return module


def _bag() -> Callable[..., Any]:
    return lambda w: F.embedding_bag(torch.tensor([0, 2, 2, 4]), w, torch.tensor([0, 2]), mode="mean")


def _called() -> Callable[..., Any]:
    module = nn.Linear(4, 3).double()
    return lambda p, x: torch.func.functional_call(module, p, (x,))


def _traced() -> Callable[..., Any]:
    return torch.jit.script(_silu)


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x * x.sigmoid()


if __name__ == "__main__":
    from tests.sweeps.sweep import Sample, share, summary, sweep

    def seeded(name: str, seed: int) -> Callable[[], Made]:
        def make() -> Made:
            torch.manual_seed(seed)
            return WRITTEN[name]()

        return make

    torch.set_num_threads(1)
    every = [Sample(f"{name}, seed {k}", seeded(name, k)) for name in WRITTEN for k in range(3)]
    print(summary(sweep(share(every)), {}))
