"""`gradlab sanitize SCRIPT.py`: run a script in this process, examine its launches, say what was found."""

import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gradlab.profiling.sanitize.report import Report
from gradlab.profiling.sanitize.sanitize import examined


class _Stop(BaseException):
    """Ends a script at its first fault: no `except Exception` of its own keeps it going."""

    def __init__(self, text: str, report: Report) -> None:
        super().__init__(text)


def sanitize(script: Path, arguments: Sequence[str], first: bool, bounds: bool, floats: bool, json: Path | None) -> int:
    """Run a script and print its faults to standard error; the exit code.

    Args:
        arguments: the script's own.
        first: end it at the first fault.
        bounds: look at bounds alone.
        floats: look for the birth of NaNs and infinities too.
        json: a file for the report.

    Returns:
        1 where a fault was found, or the script ended with an error; else the script's own exit code.
    """
    if not script.is_file():
        raise ValueError(f"sanitize: {script} is no file, wanted a Python script")
    if json is not None and not json.absolute().parent.is_dir():
        raise ValueError(f"sanitize: --json is {json}, wanted a file in a folder that exists")
    # Kernels on CPU tensors and arrays, also where a GPU is.
    os.environ.setdefault("TRITON_DEFAULT_BACKEND", "cpu")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    code: Any = 0
    report: Report | None = None
    try:
        with _keys_from_disk(), examined(first, _Stop, bounds, floats) as report:
            code = _run(script, arguments)
    except _Stop:
        pass
    except Exception:
        if report is None:
            raise
        traceback.print_exc()
        code = 1
    assert report is not None
    if json is not None:
        report.write_json(json)
    sys.stdout.flush()
    print(f"gradlab sanitize: {report}" if report else report, file=sys.stderr)
    if isinstance(code, str):
        print(code, file=sys.stderr)
    if report.faults:
        return 1
    return code if isinstance(code, int) else int(code is not None)


def _run(script: Path, arguments: Sequence[str]) -> Any:
    """What a script that is run as the main program hands to sys.exit, or 0."""
    before = sys.argv, sys.path[0]
    sys.argv, sys.path[0] = [str(script), *arguments], str(script.absolute().parent)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        sys.argv, sys.path[0] = before
    return 0


def _keys_from_disk() -> AbstractContextManager[None]:
    """Within it, Triton does not read all of its own files, where it is used."""
    if any(find_spec(name) is None for name in ("torch", "triton")):
        return nullcontext()
    from gradlab.kernels.runtime.cache_index_triton import remembered_triton_key

    return remembered_triton_key()
