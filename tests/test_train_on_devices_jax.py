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

CHECKS = """curve: digits-mlp, gradlab, float32, 2 devices, data parallel
curve: digits-mlp, gradlab, float32, 8 devices, FSDP
curve: digits-mlp, gradlab, bf16, 4 devices, data parallel
curve: digits-mlp, gradlab, fp16, 4 devices, FSDP
curve: digits-mlp, native, float32, 8 devices, data parallel
curve: digits-cnn, gradlab, float32, 4 devices, data parallel
curve: recommender, native, float32, 4 devices, FSDP
programs
sharded programs
overflow
overflow, sharded
folders
restored exactly
errors
a failed save
Ctrl-C
without orbax""".splitlines()


@pytest.fixture(scope="module")
def failures():
    """By name of a check, how it failed; empty where it did not."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.train_on_devices_jax"],
        env=env,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert list(found) == CHECKS
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_on_eight_devices(failures, name):
    assert not failures[name], failures[name]
