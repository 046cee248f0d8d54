"""`gradlab train --devices` on eight devices of one process: `train_on_devices_jax.py`, run once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")
for needed in ("optax", "orbax.checkpoint", "safetensors", "sklearn"):
    pytest.importorskip(needed)


# The algebra is tested and which collectives there are, not machine code: LLVM makes it in half the time.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)


def ran(flags):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.train_on_devices_jax"],
        env=env,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_on_eight_devices():
    """All in one test, so that several workers of pytest do not start it several times."""
    run = ran(QUICK)
    if "Unknown flag" in run.stderr:
        run = ran("")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found) > 10
    failed = {name: how for name, how in found.items() if how}
    assert not failed, "\n".join(f"{name}\n{how}" for name, how in failed.items())
