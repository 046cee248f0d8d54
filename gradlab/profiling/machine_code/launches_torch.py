"""The Triton kernels that an op launches on torch, found by running it where launches are noted and not run."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.compiler import ASTSource

from gradlab.autodiff.side_torch import SIDE
from gradlab.kernels.launch_triton import Launch, recording, triton_dtype
from gradlab.kernels.spec import Array, Case, Spec
from gradlab.profiling.machine_code.found import PARSING, Found, largest, passes


def find(op: Spec, case: Case, dtype: str) -> list[Found]:
    """Every kernel of the op's forward, backward and second backward, each once."""
    sizes = op.sizes(case)
    fn = functools.partial(SIDE.op(op.name), **op.options(case))

    def empty(a: Array) -> torch.Tensor:
        # Memory that nobody touches costs nothing; classes are looked at, and 0 is one.
        make: Callable[..., torch.Tensor] = torch.zeros if a.integer else torch.empty
        return make(a.shape(sizes), dtype=torch.int64 if a.integer else getattr(torch, dtype))

    inputs = [empty(a) for a in op.present(case)]
    cotangents = [empty(a) for a in op.outputs]
    seconds = [t for a, t in zip(op.present(case), inputs, strict=True) if a.name in op.wrt]
    noted: dict[Any, tuple[str, list[Launch], ASTSource]] = {}
    for direction, run in passes(op, case, SIDE, fn):
        with recording() as launches, _NoCopies():
            run(inputs, cotangents, seconds)
        for launch in launches:
            code = source(launch)
            key = (launch.jit, code.hash(), launch.warps, launch.stages)
            noted.setdefault(key, (direction, [], code))[1].append(launch)
    found: list[Found] = []
    for direction, launches, code in noted.values():
        first = launches[0]
        name = first.jit.fn.__name__.strip("_").removesuffix("_kernel")
        variant = 1 + sum(other.kernel == name for other in found)
        place = first.jit.fn.__code__
        grid = largest([launch.grid for launch in launches])
        found.append(
            Found(name, variant, direction, grid, first.warps, first.stages, code,
                  place.co_filename, place.co_firstlineno)
        )  # fmt: skip
    return found


def source(noted: Launch) -> ASTSource:
    """A recorded launch as the compiler takes it.

    Arguments are specialised as a launch would: a size or stride of 1 is a constant, multiples of 16 are promised.
    """
    signature, constants, attrs = {}, dict(noted.constants), {}
    for i, (name, value) in enumerate(zip(noted.jit.arg_names, noted.args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{_pointee(value.dtype)}"
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            constants[name] = 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        aligned = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if name in signature and not isinstance(value, float) and aligned % 16 == 0:
            attrs[(i,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    return Source(
        fn=noted.jit,
        signature={name: signature[name] for name in noted.jit.arg_names},
        constexprs={(noted.jit.arg_names.index(name),): value for name, value in constants.items()},
        attrs=attrs,
    )


class Source(ASTSource):
    """A kernel's source that only one thread at a time reads: Python 3.11 counts all threads' parsing as one."""

    def hash(self) -> str:
        with PARSING:
            return super().hash()

    def make_ir(self, *args: Any, **options: Any) -> Any:
        with PARSING:
            return super().make_ir(*args, **options)


class _NoCopies(TorchDispatchMode):
    """Within it a clone is memory without values: none are looked at, and those of a large case are gigabytes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            return torch.empty_like(args[0], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _pointee(dtype: torch.dtype) -> str:
    return str(triton_dtype(dtype)).replace("int", "i") if not dtype.is_floating_point else triton_dtype(dtype).name
