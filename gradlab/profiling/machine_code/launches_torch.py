"""The Triton kernels that an op launches on torch, found by running it with launches recorded, not run."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import gradlab.kernels
from gradlab.autodiff.frameworks.side_torch import SIDE
from gradlab.kernels.private.private_torch import TorchDispatchMode, pytree
from gradlab.kernels.runtime import compiled_triton
from gradlab.kernels.runtime.launch_triton import KERNELS, OF_CPUS, Launch, recording, triton_dtype
from gradlab.kernels.spec import Array, OpCase
from gradlab.profiling.machine_code.call_torch import call
from gradlab.profiling.machine_code.found import PARSER, Found, largest, passes


class Source(ASTSource):
    """Triton's source, of which one at a time is parsed."""

    def hash(self) -> str:
        with PARSER:
            return super().hash()

    def make_ir(self, *args: Any, **options: Any) -> Any:
        with PARSER:
            return super().make_ir(*args, **options)


def find(at: OpCase, dtype: str, device: str = "cuda") -> list[Found]:
    """Every kernel of the op's forward, backward and second backward, each once, with the tiles of a device.

    Args:
        device: "cpu", an architecture as "sm_80", or "cuda", a usual one.
    """

    def empty(a: Array) -> torch.Tensor:
        # Untouched memory costs nothing; class indices are read, and 0 is a valid one.
        make: Callable[..., torch.Tensor] = torch.zeros if a.integer else torch.empty
        return make(a.shape(at.sizes), dtype=torch.int64 if a.integer else getattr(torch, dtype))

    inputs = [empty(a) for a in at.inputs]
    cotangents = [empty(a) for a in at.results]
    seconds = [inputs[i] for i in at.wrt]
    noted: dict[Any, tuple[str, list[Launch], ASTSource]] = {}
    for direction, run in passes(at, SIDE):
        with recording(device) as launches, NoValues():
            run(inputs, cotangents, seconds)
        for launch in launches:
            # A CPU has no warps, and one binary for arguments that only a GPU specialises on.
            on_cpu = device == "cpu"
            code = cpu_source(launch) if on_cpu else source(launch)
            key = (launch.jit, code.hash(), *(() if on_cpu else (launch.warps, launch.stages)))
            noted.setdefault(key, (direction, [], code))[1].append(launch)
    found: list[Found] = []
    for direction, launches, code in noted.values():
        first = launches[0]
        name = first.jit.fn.__name__.strip("_").removesuffix("_kernel")
        variant = 1 + sum(other.kernel == name for other in found)
        place = first.jit.fn.__code__
        grid = largest([launch.grid for launch in launches])
        largest_one = next(launch for launch in launches if launch.grid == grid)
        values = dict(zip(first.jit.arg_names, largest_one.args, strict=False))
        found.append(
            Found(
                name,
                variant,
                direction,
                grid,
                first.warps,
                first.stages,
                code,
                place.co_filename,
                place.co_firstlineno,
                {key: str(value) for key, value in first.constants.items()},
                None if device == "cpu" else call(code.signature, values, grid, largest_one.holds),
            )
        )
    return found


def source(noted: Launch) -> Source:
    """A recorded launch as the compiler takes it.

    Arguments are specialised as a launch would: a size or stride of 1 is a constant, multiples of 16 are declared.
    """
    signature, constants, attrs = {}, dict(noted.constants), {}
    for i, (name, value) in enumerate(zip(noted.jit.arg_names, noted.args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{_pointee(value.dtype)}"
        elif isinstance(value, float):
            signature[name] = noted.jit.params[i].annotation_type or "fp32"
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


def cpu_source(noted: Launch) -> ASTSource:
    """A recorded launch as the CPU's compiler takes it."""
    return compiled_triton.source(noted.jit, noted.args, noted.constants, Source)


def every_kernel(device: str = "cuda") -> list[JITFunction]:
    """Every kernel and helper for "cuda" or "cpu" that a `*_triton.py` file of the package defines, launched or not."""
    (folder,) = gradlab.kernels.__path__
    for file in sorted(Path(folder).rglob("*_triton.py")):
        importlib.import_module(".".join(["gradlab.kernels", *file.relative_to(folder).with_suffix("").parts]))
    own = [k for k in KERNELS if k.fn.__module__.startswith("gradlab.kernels.")]
    return [k for k in own if device == "cpu" or id(k) not in OF_CPUS]


class NoValues(TorchDispatchMode):
    """Within it torch's own operations on large tensors return uninitialised memory, as their values are not needed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten" or not any(map(_large, args)):
            return func(*args, **kwargs)
        if func.overloadpacket in _FILLS:
            return args[0]
        if func._schema.is_mutable or any(r.alias_info for r in func._schema.returns):
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
        made = func(*args, **({**kwargs, "device": "meta"} if "device" in kwargs else kwargs))
        return pytree.tree_map_only(
            torch.Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype), made
        )


_FILLS = {torch.ops.aten.copy_, torch.ops.aten.fill_, torch.ops.aten.zero_, torch.ops.aten.add_, torch.ops.aten.mul_}


def _large(value: Any) -> bool:
    """A large float tensor; class indices are small and are computed."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() >= 2**16


def _pointee(dtype: torch.dtype) -> str:
    """A dtype as Triton's signatures write it: i64, u8, fp32, bf16."""
    return triton_dtype(dtype).name.replace("uint", "u").replace("int", "i")
