"""Triton's private names, each with what it is for. The interpreter and other back ends are imported when called."""

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton.language as tl

# The compiler's IR and passes, and the environment variables that its cache must know.
from triton._C.libtriton import get_cache_invalidating_env_vars as get_cache_invalidating_env_vars
from triton._C.libtriton import ir as ir
from triton._C.libtriton import passes as passes
from triton.runtime import jit
from triton.runtime._allocation import _allocator
from triton.runtime.cache import _base32
from triton.runtime.jit import JITFunction

# A kernel's hash as the name of its folder in the cache on disk.
folder_of = _base32


def made_with(inspect_: types.SimpleNamespace, fn: Any) -> JITFunction:
    """`triton.jit(fn)`, its source read by `inspect_` where Triton's jit module reads it by `inspect`."""
    if getattr(jit, "inspect", None) is not inspect:
        return JITFunction(fn)
    jit.inspect = inspect_
    try:
        return JITFunction(fn)
    finally:
        jit.inspect = inspect


def forget(kernel: JITFunction) -> None:
    """What the process has compiled of a kernel is looked for anew."""
    kernel.device_caches.clear()


class CLauncher(NamedTuple):
    """How a kernel compiled for CUDA is launched, past all that Triton does in Python.

    Attributes:
        call: launches: (programs along x, y, z, stream, address of scratch memory or None, values).
        passed: for each of the values its index among the kernel's parameters; None for one that is not read.
        scratch: bytes of scratch memory that a program needs.
        kernel: Triton's compiled kernel; while it is held its code stays loaded.
    """

    call: Callable[[int, int, int, int, int | None, list[Any]], None]
    passed: list[int | None]
    scratch: int
    kernel: Any


def c_launcher(kernel: Any, source: JITFunction) -> CLauncher | None:
    """The launcher of what `source[grid](...)` returned; None if it is not as in the versions known here.

    Those are 3.6, which compiles a launcher for every signature, and 3.7 to 3.9, where one launcher is told how to read
    the arguments by a list, from which constants can be left out.
    """
    run: Any = getattr(kernel, "run", None)
    if run is None:
        return None
    kinds = [kernel.src.signature.get(name) for name in source.arg_names]
    # A tuple, a descriptor of a tensor, or an argument that Triton adds.
    if any(not isinstance(kind, str) or kind.startswith("tensordesc") for kind in kinds):
        return None
    try:
        if run.profile_scratch_size or getattr(run, "gsan_enabled", False):
            return None
        launch, function, metadata = run.launch, kernel.function, kernel.packed_metadata
        cooperative, pdl = run.launch_cooperative_grid, run.launch_pdl
        scratch = run.global_scratch_size * run.num_ctas
        readers, form = getattr(run, "arg_annotations", None), getattr(run, "kernel_signature", None)
    except AttributeError:
        return None
    is_read = [kind != "constexpr" for kind in kinds]
    if readers is None:
        passed = [i if read else None for i, read in enumerate(is_read)]

        def call(x: int, y: int, z: int, stream: int, scratch: int | None, values: list[Any]) -> None:
            launch(x, y, z, stream, function, cooperative, pdl, scratch, None, metadata, None, None, None, *values)
    else:
        if len(readers) != len(kinds) or not isinstance(form, bytes) or len(form) != sum(is_read):
            return None
        passed = [i for i, read in enumerate(is_read) if read]
        readers = [readers[i] for i in passed]

        def call(x: int, y: int, z: int, stream: int, scratch: int | None, values: list[Any]) -> None:
            # fmt: off
            launch(
                x, y, z, stream, function, cooperative, pdl, metadata, None, None, None, scratch, None,
                readers, form, values,
            )
            # fmt: on

    return CLauncher(call, passed, scratch, kernel)


@contextmanager
def scratch_allocator(allocate: Callable[[int, int, int | None], Any]) -> Iterator[None]:
    """Within it kernels that need scratch memory get it from `allocate`; what the user has set is there again after."""
    token = _allocator.set(allocate)
    try:
        yield
    finally:
        _allocator.reset(token)


def interpreter() -> Any:
    """The interpreter's module: `interpreter_builder` runs programs, `FunctionRewriter` makes a kernel's Python."""
    from triton.runtime import interpreter

    return interpreter


def to_interpreted(value: Any, annotation: Any = None) -> Any:
    """An argument as the interpreter holds it; a float is left as it is there, but here where it is a float64."""
    if isinstance(value, float) and annotation is tl.float64:
        return tl.tensor(interpreter().TensorHandle(np.array([value]), tl.float64), tl.float64)
    return interpreter()._implicit_cvt(value)


def patch_language(namespace: dict[str, Any]) -> None:
    """Give the language modules of a kernel's namespace their NumPy meaning."""
    interpreter()._patch_lang(types.SimpleNamespace(__globals__=namespace))


def assembler(capability: int | str) -> Path:
    """The ptxas that Triton takes for a compute capability, 80 or 90."""
    from triton.backends.nvidia.compiler import get_ptxas

    return Path(get_ptxas(capability).path)


def specialised(
    kernel: JITFunction, backend: Any, args: Sequence[Any], options: dict[str, Any]
) -> tuple[dict[str, Any], Any, dict[str, Any], dict[Any, Any], dict[Any, Any]]:
    """A launch as Triton specialises it for a back end: arguments by name, options, signature, constants, attributes.

    Args:
        options: keyword arguments of the launch: the kernel's own, `num_warps` and the like.
    """
    bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, left = bind(*args, **options)
    return bound, *kernel._pack_args(backend, options, bound, specialization, left)


@contextmanager
def untuned() -> Iterator[None]:
    """Within it `triton.autotune` takes the first configuration that is left, and times none."""
    from triton.runtime.autotuner import Autotuner

    real = Autotuner._bench
    Autotuner._bench = lambda self, *args, **options: [0.0, 0.0, 0.0]
    try:
        yield
    finally:
        Autotuner._bench = real
