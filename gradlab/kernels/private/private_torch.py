"""torch's private names, each with what it is for. What takes long to import is a function that imports it."""

from collections.abc import Callable
from typing import Any

import torch

# How torch hands every operation to a class of ours.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

# How torch flattens arguments and results, lists and dicts among them.
pytree = torch.utils._pytree
# A tensor's dispatch keys, a set: what tells lazy, wrapped and plain tensors apart in one question.
dispatch_keys = torch._C._dispatch_keys
# A set of keys as bits.
raw_repr = torch._C.DispatchKeySet.raw_repr
# How many dispatch modes are on: under one an op must reach torch's dispatcher.
dispatch_modes = torch._C._len_torch_dispatch_stack
# Within it, no TorchFunctionMode hears of what is called.
without_function_modes = torch._C.DisableTorchFunction
# The node whose backward runs in this thread, or None: whether a launch belongs to a backward.
autograd_node = torch._C._current_autograd_node
# The number of the walk over a graph that the engine is on in this thread, -1 for none.
graph_task = torch._C._current_graph_task_id
# Whether vmap, grad or another of torch.func's transforms is on, and the innermost of them.
transforms_active = torch._C._are_functorch_transforms_active
innermost_transform = torch._C._functorch.peek_interpreter_stack
# Tensors with a batch axis that their shape does not show: of torch.autograd's older vmap, of torch.func's.
is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
is_batched = torch._C._functorch.is_batchedtensor
# Whether one of torch.func's transforms has wrapped a tensor, and what it has wrapped.
is_transformed = torch._C._functorch.is_functorch_wrapped_tensor
unwrapped = torch._C._functorch.get_unwrapped
# The older vmap's axes taken off and put on: (tensor, level, size, axis) and (tensor, axis, level).
remove_batch_dim = torch._remove_batch_dim
add_batch_dim = torch._add_batch_dim
# A tensor whose negation is a bit of it, as the imaginary part of a conjugate is.
negative_view = torch._neg_view
# One addition to each tensor of a list, in one launch.
foreach_add_ = torch._foreach_add_


def innermost(t: Any) -> Any:
    """The tensor inside of what torch.func's transforms have wrapped; any other as it is."""
    while isinstance(t, torch.Tensor) and is_transformed(t):
        t = unwrapped(t)
    return t


def outside_transforms() -> Any:
    """A context within which none of torch.func's transforms is on: what is made there has memory of its own."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def run_while_tracing(fn: Any) -> Any:
    """Mark a function that torch.compile calls when it traces, and takes the result of as a constant.

    As `torch.compiler.assume_constant_result`, which imports the compiler.
    """
    fn._dynamo_marked_constant = True
    return fn


def key_bits(*names: str) -> int:
    """The dispatch keys of these names as bits."""
    found = 0
    for name in names:
        found |= torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)).raw_repr()
    return found


def forward_ad_level() -> int:
    """How deep torch.autograd.forward_ad is nested, counted from 0; -1 outside of it."""
    return torch.autograd.forward_ad._current_level


def process_group(name: Any) -> Any:
    """The process group that a functional collective is given by its name."""
    if isinstance(name, torch.distributed.ProcessGroup):
        return name
    return torch.distributed.distributed_c10d._resolve_process_group(name)


def functorch_config() -> Any:
    """AOTAutograd's settings: `donated_buffer` frees what a second backward would need."""
    from torch._functorch import config

    return config


def dynamo_utils() -> Any:
    """Dynamo's counters and metrics of compilations."""
    from torch._dynamo import utils

    return utils


def clear_inductor_caches() -> None:
    """What inductor has compiled in this process is compiled anew."""
    from torch._inductor.utils import clear_caches

    clear_caches()


def caching_autotuner() -> Any:
    """inductor's launcher of a Triton kernel, whose `save_cpu_kernel` AOTInductor calls."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    return CachingAutotuner


def cpu_kernel_cache() -> Any:
    """Where AOTInductor looks for a Triton kernel's shared libraries."""
    from torch._inductor.codecache import CpuTritonKernelCache

    return CpuTritonKernelCache


def grid_expression(*args: Any, **options: Any) -> Any:
    """A kernel's grid as inductor computes it, in C++."""
    from torch._inductor.runtime.triton_heuristics import GridExpr

    return GridExpr.from_meta(*args, **options)


def cpp_compiler() -> str:
    """The C++ compiler that inductor uses."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    find: Callable[[], str] = get_cpp_compiler
    return find()


def inductor_compiles() -> Any:
    """What inductor's programs hand their Triton kernels' sources to."""
    from torch._inductor.async_compile import AsyncCompile

    return AsyncCompile


def inductor_sources() -> Any:
    """Where inductor makes modules of Triton kernels' sources."""
    from torch._inductor.codecache import PyCodeCache

    return PyCodeCache


def inductor_tiles() -> Any:
    """The tiles that inductor tries for products of CPU tensors."""
    from torch._inductor.template_heuristics.triton import CPUConfigHeuristic

    return CPUConfigHeuristic


def inductor_settings() -> Any:
    """inductor's settings."""
    from torch._inductor import config

    return config
