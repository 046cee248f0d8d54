"""`gradlab sanitize SCRIPT.py`: run a script in this process, examine its launches, say what was found."""

import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradlab.profiling.sanitize.report import Report
from gradlab.profiling.sanitize.sanitize import examined, import_triton


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
    # Kernels on CPU tensors, also where a GPU is.
    os.environ.setdefault("TRITON_DEFAULT_BACKEND", "cpu")
    code: Any = 0
    import_triton()
    from gradlab.kernels.runtime.cache_index_triton import remembered_triton_key

    with remembered_triton_key(), examined(first, _Stop, bounds, floats) as report:
        before = sys.argv, sys.path[0]
        sys.argv, sys.path[0] = [str(script), *arguments], str(script.absolute().parent)
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        except _Stop:
            pass
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            sys.argv, sys.path[0] = before
    if json is not None:
        report.write_json(json)
    sys.stdout.flush()
    print(f"gradlab sanitize: {report}" if report else report, file=sys.stderr)
    if isinstance(code, str):
        print(code, file=sys.stderr)
    if report.faults:
        return 1
    return code if isinstance(code, int) else int(code is not None)
