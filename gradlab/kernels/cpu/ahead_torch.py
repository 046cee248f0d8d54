"""AOTInductor: a kernel as two shared libraries, which a process without Python loads.

torch's generated C++ loads `NAME.so`, the kernel, and `NAME.launcher.so`, which exports

    void run_from_nativert(uint32 x, uint32 y, uint32 z, int threads, void **args, void *kernel)

and takes the arguments as torch's wrapper passes them: a pointer by value, an int64 or a float by its address.
Triton's cache keys a compiled file by its last suffix, which both libraries share; so they are no stages of the
compiler, and are built when inductor saves the kernel. The C++ compiler that AOTInductor needs anyway links them.
"""

import functools
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from gradlab.kernels.cpu import types
from gradlab.kernels.cpu.binary import Binary
from gradlab.kernels.cpu.machine import host, position_independent
from gradlab.kernels.private import private_torch

# C++ type of an argument in its slot, and the type that torch's wrapper passes by address.
_NUMBERS = {
    "i1": ("int8_t", "int64_t"),
    "i8": ("int8_t", "int64_t"),
    "i16": ("int16_t", "int64_t"),
    "i32": ("int32_t", "int64_t"),
    "i64": ("int64_t", "int64_t"),
    "f32": ("float", "float"),
    "f64": ("double", "float"),
}

_LAUNCHER = """\
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace {{
using Run = int64_t (*)(void *, int64_t, int64_t, int32_t, int32_t, int32_t, void *, void *);
const char *const messages[] = {{{messages}}};
template <class Slot, class Passed> void put(int64_t *slot, void *passed) {{
  *reinterpret_cast<Slot *>(slot) = static_cast<Slot>(*static_cast<Passed *>(passed));
}}
struct Scratch {{
  void *at = std::aligned_alloc(64, {scratch});
  ~Scratch() {{ std::free(at); }}
}};
}}  // namespace

extern "C" void run_from_nativert(uint32_t x, uint32_t y, uint32_t z, int, void **args, void *kernel) {{
  int64_t slots[{count}] = {{}}, report[16] = {{}};
{slots}
  Scratch scratch;
  if (!scratch.at) throw std::bad_alloc();
  const int64_t programs = int64_t(x) * y * z;
  if (reinterpret_cast<Run>(kernel)(slots, 0, programs, x, y, z, scratch.at, report))
    throw std::runtime_error(messages[report[0]]);
}}
"""


@functools.cache
def install() -> None:
    """Have inductor save this back end's kernels ahead of time; its older versions save no CPU kernels at all."""
    tuner_class = private_torch.caching_autotuner()
    others = getattr(tuner_class, "save_cpu_kernel", None)
    if others is None:
        return

    @functools.wraps(others)
    def save_cpu_kernel(tuner: Any, launcher: Any) -> None:
        (_save if "obj" in launcher.bin.asm else others)(tuner, launcher)

    tuner_class.save_cpu_kernel = save_cpu_kernel


def _save(tuner: Any, launcher: Any) -> None:
    # torch's wrapper passes the kernel's arguments without its constants, and a grid for user-written kernels only.
    constants = {parameter.name for parameter in tuner.fn.params if parameter.is_constexpr}
    signature = {name: kind for name, kind in launcher.bin.src.signature.items() if name not in constants}
    kernel, launching = libraries(launcher.bin, signature, _grid(tuner, launcher, signature))
    private_torch.cpu_kernel_cache().set(
        tuner.inductor_meta["kernel_name"],
        kernel_bytes=kernel,
        launcher_bytes=launching,
        kernel_symbol=launcher.bin.metadata.name,
        signature=signature,
    )
    tuner.cpu_kernel_saved = True


def _grid(tuner: Any, launcher: Any, signature: dict[str, str]) -> list[str]:
    """C++ that computes the grid where torch's wrapper passes none."""
    meta = tuner.inductor_meta
    extra = meta.get("extra_launcher_args", [])
    if extra == ["_grid_0", "_grid_1", "_grid_2"]:
        return []
    if extra:
        raise NotImplementedError(
            f"{meta['kernel_name']}: several configurations, and {len(extra)} grid sizes known only at run time, "
            "wanted one configuration, or grid sizes known at compile time"
        )
    fixed = tuner.triton_meta.get("constants", {})
    grid = private_torch.grid_expression(meta, launcher.config, mode="cpp")
    numbers = []
    for place, (name, kind) in enumerate(signature.items()):
        if kind == "constexpr" and isinstance(fixed.get(name), int):
            numbers.append(f"[[maybe_unused]] const int64_t {name} = {fixed[name]};")
        elif kind in ("i32", "i64"):
            numbers.append(f"[[maybe_unused]] const int64_t {name} = *static_cast<int64_t *>(args[{place}]);")
    return [*numbers, *grid.prefix, f"x = {grid.x_grid};", f"y = {grid.y_grid};", f"z = {grid.z_grid};"]


def libraries(compiled: Any, signature: dict[str, str], grid: list[str]) -> tuple[bytes, bytes]:
    """The kernel and its launcher as shared libraries.

    Args:
        compiled: Triton's compiled kernel, of this back end.
        signature: name and Triton's type of each argument that the launcher takes; "constexpr" ones are skipped.
        grid: C++ that sets `x`, `y` and `z` before the kernel runs.

    Raises:
        NotImplementedError: the kernel prints, or takes a type of number that torch's wrapper does not pass.
        RuntimeError: the C++ compiler fails.
    """
    binary, ir = Binary.unseal(compiled.asm["obj"]), compiled.asm["llir"]
    if "load ptr, ptr %report_printer" in ir:
        raise NotImplementedError(f"{binary.name}: tl.device_print has nowhere to print to without Python")
    source = _launcher(binary, signature, grid)
    with tempfile.TemporaryDirectory(prefix="gradlab-ahead-") as folder:
        code = Path(folder, "kernel.o")
        code.write_bytes(position_independent(ir, host(), binary.entry, compiled.metadata.name))
        text = Path(folder, "launcher.cpp")
        text.write_text(source)
        return _linked(code, binary.name), _linked(text, binary.name)


def _launcher(binary: Binary, signature: dict[str, str], grid: list[str]) -> str:
    given = [place for place, kind in enumerate(signature.values()) if kind != "constexpr"]
    lines = []
    for slot, (place, (name, kind)) in enumerate(zip(given, binary.arguments, strict=True)):
        if types.is_pointer(kind):
            lines.append(f"slots[{slot}] = reinterpret_cast<int64_t>(args[{place}]);")
        elif kind in _NUMBERS:
            lines.append(f"put<{', '.join(_NUMBERS[kind])}>(slots + {slot}, args[{place}]);")
        else:
            raise NotImplementedError(f"{binary.name}: {name} is a {kind}, wanted an address, an integer, f32 or f64")
    messages = [json.dumps(f"{place}: {text or 'device_assert'} ({binary.name})") for text, place in binary.messages]
    return _LAUNCHER.format(
        messages=", ".join(messages) or '""',
        scratch=-(-max(binary.scratch, 64) // 64) * 64,
        count=max(len(given), 1),
        slots="\n".join(f"  {line}" for line in [*lines, *grid]),
    )


def _linked(source: Path, name: str) -> bytes:
    library = source.with_suffix(".so")
    command = [
        private_torch.cpp_compiler(),
        "-shared",
        "-fPIC",
        "-O1",
        "-std=c++17",
        str(source),
        "-o",
        str(library),
        "-lm",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"{name}: {command[0]} does not link this kernel ({lines[-1]})")
    return library.read_bytes()
