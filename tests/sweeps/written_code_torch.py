"""The functions and modules of `written_torch`, each right."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional

F, nn = functional, torch.nn
Made = tuple[Callable[..., Any], tuple[Any, ...]]


def normal(*shape: int) -> torch.Tensor:
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
    """A loop that ends when it has settled, or gives up: the number of turns depends on the values."""
    y = torch.ones_like(a)
    for _ in range(60):
        if (y * y - a).abs().max() < 1e-13:
            break
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


def mask(rows: int, columns: int) -> torch.Tensor:
    mask = torch.rand(rows, columns) < 0.4
    mask[:, 0] = False
    return mask


def tied() -> nn.Module:
    module = double(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))
    module[2].weight = module[0].weight
    return module


def frozen() -> nn.Module:
    module = double(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    module[0].requires_grad_(False)
    return module


def hooked() -> nn.Module:
    module = double(nn.Linear(4, 3))
    module.register_forward_hook(lambda m, args, y: y.sin())
    return module


def bag() -> Callable[..., Any]:
    return lambda w: F.embedding_bag(torch.tensor([0, 2, 2, 4]), w, torch.tensor([0, 2]), mode="mean")


def called() -> Callable[..., Any]:
    module = nn.Linear(4, 3).double()
    return lambda p, x: torch.func.functional_call(module, p, (x,))


def traced() -> Callable[..., Any]:
    return torch.jit.script(_silu)


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x * x.sigmoid()
