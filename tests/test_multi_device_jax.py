"""Every op on four devices, under jax's own defaults: `multi_device_jax.py`, run once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

from gradlab.kernels.spec import specs

PROGRAM = Path(__file__).with_name("multi_device_jax.py")


@pytest.fixture(scope="module")
def failures():
    """By name of a check, how it failed; empty where it did not."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    env["PYTHONPATH"] = os.pathsep.join([str(PROGRAM.parents[1]), env.get("PYTHONPATH", "")])
    run = subprocess.run([sys.executable, PROGRAM], env=env, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("where", ["in_shard_map", "on_auto_axes", "on_explicit_axes"])
@pytest.mark.parametrize("name", [*specs(), "steps"])
def test_on_four_devices(failures, where, name):
    if (where, name) == ("on_auto_axes", "steps"):
        return
    assert not failures[f"{where}: {name}"], failures[f"{where}: {name}"]
