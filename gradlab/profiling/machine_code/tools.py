"""The tools that assemble and disassemble machine code: Triton's copies, or those on PATH."""

import functools
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path


@functools.cache
def tool(name: str) -> str:
    """The path of ptxas, cuobjdump or nvdisasm.

    Raises:
        ModuleNotFoundError: it is neither in Triton's package nor on PATH.
    """
    found = importlib.util.find_spec("triton")
    folders = [Path(place) for place in found.submodule_search_locations or ()] if found else []
    for folder in folders:
        program = folder / "backends" / "nvidia" / "bin" / name
        if program.is_file():
            return str(program)
    on_path = shutil.which(name)
    if on_path is None:
        raise ModuleNotFoundError(
            f"inspect needs {name}, which is neither in Triton's package nor on PATH: pip install triton, "
            "or NVIDIA's CUDA toolkit"
        )
    return on_path


def run_tool(
    name: str | Path, *words: str, data: bytes, suffix: str, out: str = "", messages: bool = False
) -> str | bytes:
    """Run a tool, by name or path, on `data` as a file; returns its output or, with `out`, the file that it writes.

    Args:
        messages: its standard error too, behind its output.

    Raises:
        RuntimeError: the tool fails; its first line says why.
    """
    with tempfile.TemporaryDirectory(prefix="gradlab-") as folder:
        file = Path(folder) / f"kernel{suffix}"
        file.write_bytes(data)
        made = Path(folder) / out
        words = (*words, str(file), *(("-o", str(made)) if out else ()))
        program = name if isinstance(name, Path) else tool(name)
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise RuntimeError(f"{Path(name).name}: {lines[0] if lines else f'exit {done.returncode}'}")
        return made.read_bytes() if out else done.stdout + done.stderr * messages
