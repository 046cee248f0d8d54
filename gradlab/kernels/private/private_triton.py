"""Triton's private names, each with what it is for. The interpreter and other back ends are imported when called."""

import inspect
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The compiler's IR and passes, and the environment variables that its cache must know.
from triton._C.libtriton import get_cache_invalidating_env_vars as get_cache_invalidating_env_vars
from triton._C.libtriton import ir as ir
from triton._C.libtriton import passes as passes
from triton.runtime import jit
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


def interpreter() -> Any:
    """The interpreter's module: `interpreter_builder` runs programs, `FunctionRewriter` makes a kernel's Python."""
    from triton.runtime import interpreter

    return interpreter


def to_interpreted(value: Any) -> Any:
    """An argument as the interpreter holds it."""
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
