"""The `Side` of torch."""

import functools
import importlib
import itertools
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from gradlab.autodiff.frameworks.side import as_tuple
from gradlab.kernels.private.private_torch import functorch_config, pytree
from gradlab.kernels.runtime.launch_triton import interpreted


class TorchSide:
    """torch, on CUDA where there is one."""

    name = "torch"

    def __init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def op(self, name: str) -> Callable[..., Any]:
        return importlib.import_module(f"gradlab.autodiff.{name}_torch").by_spec

    def put(self, array: np.ndarray, dtype: str, like: torch.Tensor | None = None) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(array))
        device = self._device if like is None else like.device
        if tensor.is_floating_point():
            return tensor.to(device, getattr(torch, dtype))
        return tensor.to(device, None if like is None else like.dtype)

    def cast(self, array: torch.Tensor, dtype: str) -> torch.Tensor:
        return array.to(getattr(torch, dtype))

    def take(self, value: torch.Tensor) -> np.ndarray:
        value = self.dense(value.detach()).cpu()
        if value._is_zerotensor():
            value = torch.zeros(value.shape, dtype=value.dtype)
        return (value.double() if value.is_floating_point() else value).resolve_neg().numpy()

    def is_array(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    def dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("torch.") if isinstance(array, torch.Tensor) else ""

    def foreign(self, array: Any) -> str:
        if not isinstance(array, torch.Tensor):
            return ""
        if array.is_nested:
            return "nested"
        return "" if array.layout == torch.strided else str(array.layout).removeprefix("torch.")

    def dense(self, array: torch.Tensor) -> torch.Tensor:
        # A gradient of what is stored alone would be 0 for the zeros that are not.
        return array if array.layout == torch.strided else array.to_dense(masked_grad=False)

    def parts(self, array: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.real(array), torch.imag(array)

    def joined(self, real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
        return torch.complex(real, imaginary)

    def functional(self, fn: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
        if not isinstance(fn, torch.nn.Module):
            return fn, {}
        parameters = {name: p.detach() for name, p in fn.named_parameters() if p.requires_grad}
        return (Functional(fn) if parameters else fn), parameters

    def differentiable(
        self, fn: Callable[..., tuple[Any, ...]], args: Sequence[torch.Tensor], wrt: Sequence[int]
    ) -> list[str]:
        with torch.enable_grad():
            results = fn(*(_leaf(a) if i in wrt else a for i, a in enumerate(args)))
        return [self.dtype(y) if y.requires_grad else "" for y in results]

    def flatten(self, tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any], list[tuple[str, str]]]:
        pairs, structure = pytree.tree_flatten_with_path(tree)
        # None is an absent array, as it is in jax, and no leaf.
        held = [leaf is not None for _, leaf in pairs]
        paths = [(str(getattr(p[0], "idx", "")), pytree.keystr(p[1:])) if p else ("", "") for p, _ in pairs]

        def rebuild(leaves: Sequence[Any]) -> Any:
            rest = iter(leaves)
            return pytree.tree_unflatten([next(rest) if there else None for there in held], structure)

        return [leaf for _, leaf in pairs if leaf is not None], rebuild, list(itertools.compress(paths, held))

    def pullback(self, fn: Callable[..., Any], wrt: Sequence[int]) -> Callable[..., tuple[torch.Tensor, ...]]:
        def vjp(args: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            """Recorded when an argument already requires a gradient, which is how a second derivative asks."""
            again = torch.is_grad_enabled() and any(t.requires_grad for t in (*args, *cotangents))
            args = [_leaf(a) if i in wrt and not a.requires_grad else a for i, a in enumerate(args)]
            with torch.enable_grad():
                moving = [args[i] for i in wrt]
                results = as_tuple(fn(*args))
                pairs = [(y, c.to(y.dtype)) for y, c in zip(results, cotangents, strict=True) if y.requires_grad]
                if not pairs:
                    return tuple(torch.zeros_like(t) for t in moving)
                # An argument that no output depends on has the gradient 0, as it has in jax.
                outputs, given = zip(*pairs, strict=True)
                return torch.autograd.grad(outputs, moving, given, create_graph=again, materialize_grads=True)

        return vjp

    def backward_alone(
        self,
        fn: Callable[..., Any],
        wrt: Sequence[int],
        args: Sequence[torch.Tensor],
        cotangents: Sequence[torch.Tensor],
        compiled: bool,
    ) -> Callable[[], tuple[torch.Tensor, ...]]:
        args = [_leaf(a) if i in wrt else a for i, a in enumerate(args)]
        # Saved tensors are used by every call: a compiled backward must not write into them.
        with torch.enable_grad(), functorch_config().patch(donated_buffer=False):
            results = as_tuple((self.compiled(fn) if compiled else fn)(*args))
            pairs = [(y, c) for y, c in zip(results, cotangents, strict=True) if y.requires_grad]
            outputs, given = zip(*pairs, strict=True)
            moving = [args[i] for i in wrt]
            again = functools.partial(torch.autograd.grad, outputs, moving, given, retain_graph=True)
            # The first call compiles backward, and has to know that too.
            again(materialize_grads=True)
        return functools.partial(again, materialize_grads=True)

    def compiled(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(fn, fullgraph=True, backend=backend())

    def quick(self, fn: Callable[..., Any], small: bool = False) -> Callable[..., Any]:
        return fn

    def double(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def single(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def wait(self, value: Any) -> Any:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return value

    def device(self) -> str:
        return self._device.type

    def interpreted(self) -> bool:
        return interpreted(self._device)


class Functional:
    """A module as a function of its trainable parameters, by name, and of its arguments.

    Its other float tensors are in the dtype that its parameters come in, where they were before.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module, self.__name__ = module, type(module).__name__
        frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
        own = {p.dtype for p in module.parameters() if p.requires_grad}
        others = {**frozen, **dict(module.named_buffers())}
        self._others = {name: t for name, t in others.items() if t.dtype in own}

    def __call__(self, parameters: dict[str, torch.Tensor], *args: Any, **options: Any) -> Any:
        dtype = next(iter(parameters.values())).dtype
        others = {name: t.to(dtype) for name, t in self._others.items() if t.dtype != dtype}
        return torch.func.functional_call(self.module, {**others, **parameters}, args, options)


def _leaf(t: torch.Tensor) -> torch.Tensor:
    return t.detach().requires_grad_()


def backend() -> str:
    """inductor, or aot_eager on a machine without the C++ compiler that inductor needs."""
    return "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"


SIDE = TorchSide()
