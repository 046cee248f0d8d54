"""Torch's own database of operators through the check: `python -m tests.sweeps.opinfo_torch`, some minutes.

Every operator with a gradient in float64, the first samples of each, order 1. torch's database needs `expecttest`,
which is no dependency of the project: `python -m pip install expecttest`.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

from tests.sweeps.sweep import Sample, share, summary, sweep

# Samples of each operator.
FIRST = 2
# Gradients of torch that are wrong where the function is differentiable, looked at one by one.
KNOWN: dict[str, str] = {
    "linalg.det": "0 for a singular matrix, whose determinant still has a slope",
    "index_reduce.amax": "half of the gradient at a tie with a value that is left out (include_self=False)",
    "index_reduce.amin": "half of the gradient at a tie with a value that is left out (include_self=False)",
    "scatter_reduce.amax": "half of the gradient at a tie with a value that is left out (include_self=False)",
    "scatter_reduce.amin": "half of the gradient at a tie with a value that is left out (include_self=False)",
    "native_group_norm": "the gradients of mean and rstd are lost when the first result is not used",
    "nn.functional.max_unpool1d": "indices that overlap: what is overwritten gets a gradient",
    "nn.functional.max_unpool2d": "indices that overlap: what is overwritten gets a gradient",
    "nn.functional.max_unpool3d": "indices that overlap: what is overwritten gets a gradient",
    "nn.functional.pixel_shuffle": "backward raises for an empty batch",
    "nn.functional.pixel_unshuffle": "backward raises for an empty batch",
    "nn.functional.poisson_nll_loss": "NaN for a target of 0 with full=True, where the loss is flat",
    "nn.functional.softshrink": "0 at 0 with lambd=0, where the function is the identity",
    "nn.functional.hardshrink": "0 at 0 with lambd=0, where the function is the identity",
    "lu": "NaN for a singular matrix whose factors are still smooth",
    "linalg.lu": "NaN for a singular matrix whose factors are still smooth",
    "linalg.lu_factor_ex": "NaN for a singular matrix whose factors are still smooth",
    "linalg.cholesky_ex": "a matrix that is not positive definite: info says so, and the gradient is not that of L",
    "nextafter": "0 where both are equal, the slope in the first is 1",
    "polar": "0 at a modulus of 0, where the slopes are the cosine and the sine of the angle",
    "masked.std": "NaN where all elements are equal",
    "hypot": "NaN at (0, 0)",
    "as_strided_scatter": "what is overwritten gets a gradient, and dy is read as it lies",
    "normal": "0 by definition: with a seed that is fixed it is the mean and the deviation times a constant",
}


def samples() -> list[Sample]:
    """One for each operator and sample; what they hold is made when they are checked."""
    chosen = [op for op in op_db if op.supports_autograd and torch.float64 in op.supported_dtypes("cpu")]
    return [Sample(f"{op.full_name}, {k}", _maker(op, k)) for op in chosen for k in range(FIRST)]


def _maker(op: Any, k: int) -> Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]:
    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        torch.manual_seed(0)
        found = next(itertools.islice(op.sample_inputs("cpu", torch.float64, requires_grad=False), k, None))
        leaves, structure = pytree.tree_flatten(((found.input, *found.args), found.kwargs))
        if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise ValueError("no tensor among the arguments")
        tensors = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
        constants = tuple(None if i in tensors else leaf for i, leaf in enumerate(leaves))

        def fn(*given: torch.Tensor) -> Any:
            whole = list(constants)
            for i, t in zip(tensors, given, strict=True):
                whole[i] = t
            args, options = pytree.tree_unflatten(whole, structure)
            # As torch checks it: a matrix that must be symmetric is made so on the way in.
            y = op.gradcheck_wrapper(op.op, *args, **options)
            # Its own way to make a sparse result dense has no gradient for what is not stored.
            return y if isinstance(y, torch.Tensor) and y.is_sparse else found.output_process_fn_grad(y)

        fn.__name__ = op.full_name
        return fn, tuple(leaves[i].detach() for i in tensors)

    return make


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(summary(sweep(share(samples()), order=1), KNOWN))
