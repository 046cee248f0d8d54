"""Profiler ranges (NVTX) around torch's ops and rules, and the base classes of every rule.

Under torch.compile no range is opened, since it would break the graph; what stays is the range of each kernel, which is
opened inside the registered custom op.
"""

import functools
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch

from gradlab.autodiff.frameworks import batched_torch, sharded_torch
from gradlab.kernels.private.private_torch import dispatch_modes, forward_ad_level, transforms_active
from gradlab.kernels.runtime import memory_triton as memory
from gradlab.kernels.runtime import ranges, sharded_triton
from gradlab.kernels.runtime.launch_triton import bare
from gradlab.kernels.runtime.plans_triton import Plans

P = ParamSpec("P")
R = TypeVar("R")


def public(op: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate the public function of `op`: an eager call opens a range of its name, shapes, FLOPs and bytes."""

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        planned = Plans(fn)

        @functools.wraps(fn)
        def call(*args: P.args, **options: P.kwargs) -> R:
            # The compiler is asked first: its programs are then not guarded by whether ranges are on.
            if torch.compiler.is_compiling():
                if options.get("group") is not None:
                    # The ranks of a process group agree on their parts, which no graph holds.
                    return torch.compiler.disable(call)(*args, **options)
                return fn(*args, **options)
            if torch.jit.is_tracing():
                _refuse_trace(fn.__name__)
            if ranges.opener is None:
                signature = _signature(args, options)
                return fn(*args, **options) if signature is None else planned(signature, args, options)
            with ranges.opener.call("torch", op, fn, args, options):
                return fn(*args, **options)

        return call

    return decorate


def _signature(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...] | None:
    """The key of an eager call without autograd, dispatch modes, transforms and autocast; None where one is on."""
    if not bare() or dispatch_modes() or transforms_active():
        return None
    values = (*args, *options.values()) if options else args
    if not unrecorded(values) or torch.is_autocast_enabled("cpu"):
        return None
    found = memory.signature(values)
    return None if found is None else (len(args), *options, *found)


def _refuse_trace(name: str) -> NoReturn:
    """A trace has sizes of the example input in it, as a mean's divisor, and would use them for other inputs."""
    wanted = "torch.export.export or torch.compile, which follow sizes"
    raise NotImplementedError(f"{name}: the call is recorded by torch.jit.trace, wanted {wanted}")


def unrecorded(args: tuple[Any, ...]) -> bool:
    """Whether autograd records nothing for these arguments, in reverse or forward mode: `apply` is `forward` then."""
    if torch.is_grad_enabled():
        for a in args:
            if isinstance(a, torch.Tensor) and a.requires_grad:
                return False
    return forward_ad_level() < 0


class Direct(torch.autograd.Function):
    """A `torch.autograd.Function` whose eager calls on plain tensors skip `Function.apply`'s binding of arguments.

    Where torch.autograd batches a backward, it is applied by its own vmap rule. No range is opened: for rules whose
    backward launches nothing.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.vmap = staticmethod(batched_torch.through(cls.vmap))  # type: ignore[method-assign]

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return super().apply(*args)
        if not memory.strange(args):
            if not transforms_active():
                if unrecorded(args):
                    return cls.forward(*args)
                # torch's own `apply` binds arguments to forward's signature first, which takes longer than a kernel.
                return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]
        elif batched_torch.hides_batch(args):
            return batched_torch.apply(cls, args)
        elif sharded_triton.meets(args):
            return sharded_torch.rule_of(cls).apply(*args)
        return super().apply(*args)


class Function(Direct):
    """A `torch.autograd.Function` whose backward opens a range, in whichever thread autograd runs it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.setup_context = staticmethod(_noted(cls.setup_context))  # type: ignore[method-assign]
        cls.backward = staticmethod(_ranged(cls, cls.backward))  # type: ignore[method-assign]


def _noted(setup_context: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(setup_context)
    def noted(ctx: Any, inputs: Any, output: Any) -> None:
        setup_context(ctx, inputs, output)
        if not torch.compiler.is_compiling() and ranges.opener is not None:
            ranges.opener.noted(ctx)

    return noted


def _ranged(rule: type, backward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(backward)
    def ranged(ctx: Any, *cotangents: Any) -> Any:
        if torch.compiler.is_compiling() or ranges.opener is None:
            return backward(ctx, *cotangents)
        with ranges.opener.rule("torch", rule, ctx, cotangents):
            return backward(ctx, *cotangents)

    return ranged
