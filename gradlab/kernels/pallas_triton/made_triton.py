"""Text in Triton's language as a kernel of Triton's, and as its IR; needs neither torch nor jax."""

import functools
import hashlib
import linecache
import re
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction

from gradlab.kernels.private.private_triton import ir

_TYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp64",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "uint16": "u16",
    "uint32": "u32",
    "uint64": "u64",
}
# Whatever jax allocates begins at a multiple of it, in bytes.
_ALIGNED = 16


@functools.lru_cache(maxsize=1024)
def kernel_of(name: str, text: str) -> JITFunction:
    """The kernel that a text defines. Triton reads a function's source by its file, so the text is one."""
    file = f"<gradlab {name} {hashlib.sha256(text.encode()).hexdigest()[:12]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope: dict = {"tl": tl, "__name__": __name__}
    exec(compile(text, file, "exec"), scope)
    return triton.jit(scope[name])


@functools.lru_cache(maxsize=1024)
def ir_of(
    name: str,
    text: str,
    places: tuple[tuple[str, int] | None, ...],
    parameters: tuple[tuple[str, str], ...],
    warps: int,
    stages: int,
    capability: int = 90,
) -> str:
    """Triton's IR of a kernel, each operation at the place that its line was made of.

    Args:
        places: for each line of the text its file and line, or None.
        parameters: name and dtype of each, all pointers.
    """
    kernel = kernel_of(name, text)
    signature = {p: f"*{_TYPES[dtype]}" for p, dtype in parameters}
    aligned = {(i,): [["tt.divisibility", _ALIGNED]] for i in range(len(parameters))}
    source = ASTSource(kernel, signature, {}, aligned)
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    options = backend.parse_options({"num_warps": warps, "num_stages": stages})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    passes: dict[str, Any] = {}
    backend.add_stages(passes, options, source.language)
    # The first passes put callees in their place and optimize what no target matters for.
    module = passes["ttir"](source.make_ir(target, options, functions, modules, context), {})
    return _placed(str(module), places)


def _placed(text: str, places: Sequence[tuple[str, int] | None]) -> str:
    def moved(found: re.Match[str]) -> str:
        line = int(found[1]) - 1
        place = places[line] if 0 <= line < len(places) else None
        return f'"{place[0]}":{place[1]}:0' if place else found[0]

    return re.sub(r'"<gradlab [^"]*>":(\d+):\d+', moved, text)
