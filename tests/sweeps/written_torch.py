"""Code as people write it around torch, each right, with the habits that a check may stumble over: a sweep."""

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.sweeps import written_code_torch as code
from tests.sweeps.written_code_torch import Made
from tests.sweeps.written_code_torch import normal as _

WRITTEN: dict[str, Callable[[], Made]] = {
    "a number beside tensors": lambda: (lambda x: code.Scaled.apply(x, 1.5), (_(3, 4),)),
    "needs_input_grad": lambda: (code.Needed.apply, (_(3, 4), _(4, 2))),
    "far kinks": lambda: (code.Clamped.apply, (_(3, 4),)),
    "through NumPy": lambda: (code.ThroughNumPy.apply, (_(3, 4),)),
    "a marked result": lambda: (code.TwoResults.apply, (_(3, 4),)),
    "once differentiable": lambda: (code.InPlace.apply, (_(3, 4),)),
    "float32 alone": lambda: (code.Single.apply, (_(3, 4).float(),)),
    "a NamedTuple": lambda: (lambda x: code.Output(x.sin(), x.cos()), (_(3, 4),)),
    "a dictionary": lambda: (code.losses, (_(3, 4),)),
    "a dictionary in": lambda: (code.state, ({"x": _(3, 4), "mask": (_(3, 4) > -1).double()},)),
    "a list in": lambda: (code.ragged, ([_(3), _(5), _(1)],)),
    "a list out": lambda: (code.scan, (_(3, 4),)),
    "a block with a buffer": lambda: (code.double(code.Block()), (_(2, 3, 4),)),
    "BatchNorm, training": lambda: (code.double(nn.BatchNorm1d(4)), (_(5, 4),)),
    "BatchNorm, evaluating": lambda: (code.double(nn.BatchNorm1d(4)).eval(), (_(5, 4),)),
    "BatchNorm, float32": lambda: (nn.BatchNorm1d(4), (_(5, 4).float(),)),
    "InstanceNorm": lambda: (code.double(nn.InstanceNorm1d(3, affine=True)), (_(2, 3, 5),)),
    "Dropout, evaluating": lambda: (nn.Sequential(nn.Dropout(), nn.Tanh()).eval(), (_(3, 4),)),
    "counts its calls": lambda: (code.Average(), (_(3, 4),)),
    "a cache": lambda: (code.Memory(), (_(3, 4),)),
    "weight norm": lambda: (code.double(parametrizations.weight_norm(nn.Linear(4, 3))), (_(2, 4),)),
    "spectral norm, evaluating": lambda: (code.double(parametrizations.spectral_norm(nn.Linear(4, 3))).eval(), (_(2, 4),)),
    "orthogonal": lambda: (code.double(parametrizations.orthogonal(nn.Linear(4, 4))), (_(2, 4),)),
    "tied weights": lambda: (code.tied(), (_(2, 4),)),
    "frozen weights": lambda: (code.frozen(), (_(2, 4),)),
    "GRU": lambda: (code.double(nn.GRU(3, 4, batch_first=True)), (_(2, 3, 3),)),
    "an encoder's layer": lambda: (code.double(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)).eval(), (_(2, 3, 4),)),
    "EmbeddingBag": lambda: (code.bag(), (_(5, 3),)),
    "rotary": lambda: (code.rope, (_(2, 3, 4),)),
    "rows in place": lambda: (code.filled, (_(3, 4),)),
    "written over": lambda: (code.written_over, (_(3, 4),)),
    "Sinkhorn": lambda: (code.sinkhorn, (_(3, 3),)),
    "Newton": lambda: (code.newton, (_(3).abs() + 0.5,)),
    "a masked attention": lambda: (code.masked_attention, (_(3, 4), _(5, 4), _(5, 2), code.mask(3, 5))),
    "flash with a mask": lambda: (
        functools.partial(F.scaled_dot_product_attention, is_causal=True), (_(1, 2, 3, 4), _(1, 2, 3, 4), _(1, 2, 3, 4))),
    "contrastive": lambda: (code.contrastive, (_(4, 3), _(4, 3))),
    "triplet": lambda: (F.triplet_margin_loss, (_(4, 3), _(4, 3), _(4, 3))),
    "a mixture of experts": lambda: (code.mixture, (_(5, 4), _(4, 3), _(3, 4, 4))),
    "checkpointed": lambda: (code.checkpointed, (_(3, 4),)),
    "a gradient inside": lambda: (code.penalty, (_(3, 4), _(4, 2))),
    "ctc": lambda: (code.ctc, (_(5, 1, 4),)),
    "sparse values": lambda: (code.sparse, (_(3, 2), _(3))),
    "segments": lambda: (code.jagged, (_(5),)),
    "a graph": lambda: (code.graph, (_(4, 3), torch.tensor([[0, 1, 2, 3, 0], [1, 1, 0, 2, 3]]))),
    "detached parts": lambda: (code.quantised, (_(3, 4),)),
    "a generator of its own": lambda: (code.seeded_dropout, (_(3, 4),)),
    "a batch of four": lambda: (code.pinned_rows, (_(4, 3),)),
    "an unused argument": lambda: (code.unused, (_(3), _(3))),
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
    "functional_call": lambda: (code.called(), ({"weight": _(3, 4), "bias": _(3)}, _(2, 4))),
    "a jvp inside": lambda: (lambda x: torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1], (_(3),)),
    "a vmap inside": lambda: (lambda x, w: torch.func.vmap(lambda r: (r @ w).tanh())(x), (_(3, 4), _(4, 2))),
    "a hessian inside": lambda: (lambda x: torch.func.hessian(lambda t: t.sin().prod())(x), (_(3),)),
    "a hook": lambda: (code.hooked(), (_(2, 4),)),
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
    "a scripted sum": lambda: (code.traced(), (_(3, 4),)),
    "large": lambda: (lambda x: (x * 1e150).tanh() + x, (_(3, 4),)),
    "tiny": lambda: (lambda x: x * 1e-200, (_(3, 4),)),
    "many orders": lambda: (lambda x: x * torch.logspace(-12, 12, 12, dtype=x.dtype).reshape(3, 4), (_(3, 4),)),
    "ill conditioned": lambda: (lambda x: torch.linalg.solve(torch.diag(torch.logspace(0, -12, 3, dtype=x.dtype)), x), (_(3, 2),)),
}  # fmt: skip


# What is wrong in torch, looked at one by one.
KNOWN = {
    "weight norm": "the second derivative of torch._weight_norm; gradgradcheck says so too (torch 2.13)",
    "sparse values": "the gradient of the values has no graph, though it depends on the other matrix",
    "a hessian inside": "NaN in the third derivative of prod at zeros, where it is 1",
}


if __name__ == "__main__":
    from tests.sweeps.sweep import Sample, share, summary, sweep

    def seeded(name: str, seed: int) -> Callable[[], Made]:
        def make() -> Made:
            torch.manual_seed(seed)
            return WRITTEN[name]()

        return make

    torch.set_num_threads(1)
    every = [Sample(f"{name}, seed {k}", seeded(name, k)) for name in WRITTEN for k in range(3)]
    print(summary(sweep(share(every)), KNOWN))
