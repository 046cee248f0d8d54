"""Programs of checks that a test starts as processes of their own: devices are counted when a framework starts."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The algebra is tested and which collectives there are, not machine code: LLVM makes it in half the time.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)


def environment(flags: str) -> dict[str, str]:
    """Of a process in which XLA has these flags."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags, "PYTHONPATH": path}


def found(*words: str, flags: str = "--xla_force_host_platform_device_count=8") -> Any:
    """What `python words` says on its last line, JSON; XLA's machine code is made quickly where it has such flags."""
    command = [sys.executable, *words]
    for all_flags in (f"{flags} {QUICK}", flags):
        run = subprocess.run(
            command, cwd=ROOT, env=environment(all_flags), capture_output=True, text=True, timeout=900, check=False
        )
        if "Unknown flag" not in run.stderr:
            break
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def refuse(found: Mapping[str, str]) -> None:
    """Fail with what the checks of a report that failed say."""
    failed = {name: how for name, how in found.items() if how}
    assert not failed, "\n".join(f"{name}\n{how}" for name, how in failed.items())


def report(checks: Mapping[str, Callable[[], object]]) -> None:
    """Run the checks, or those with a word of the command line in their names; print by name how each failed, JSON."""
    wanted, failed = sys.argv[1:], {}
    for name, check in checks.items():
        if wanted and not any(word in name for word in wanted):
            continue
        try:
            check()
            failed[name] = ""
        except Exception:
            failed[name] = traceback.format_exc()
    print(json.dumps(failed))
