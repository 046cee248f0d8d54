"""Every op on eight devices, under jax's own defaults: `multi_device_jax.py`, run once; and on two processes."""

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

from gradlab.kernels.spec import specs

PROGRAM = Path(__file__).with_name("multi_device_jax.py")
SENT = (
    "data_parallel",
    "tensor_parallel",
    "sequence_parallel",
    "convolution",
    "optimizers",
    "gradients_elsewhere",
    "trained_elsewhere",
    "random_rounding",
    "transforms",
    "uneven",
    "named_by_jit",
    "fully_sharded",
    "for_gpus",
    "refusals",
    pytest.param("nnx_model", marks=pytest.mark.skipif(find_spec("flax") is None, reason="flax is missing")),
)


def environment(devices):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    env["PYTHONPATH"] = os.pathsep.join([str(PROGRAM.parents[1]), env.get("PYTHONPATH", "")])
    return env


@pytest.fixture(scope="module")
def failures():
    """By name of a check, how it failed; empty where it did not."""
    run = subprocess.run([sys.executable, PROGRAM], env=environment(8), capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("where", ["in_shard_map", "on_auto_axes", "on_explicit_axes"])
@pytest.mark.parametrize("name", [*specs(), "steps"])
def test_on_four_devices(failures, where, name):
    assert not failures[f"{where}: {name}"], failures[f"{where}: {name}"]


@pytest.mark.parametrize("name", SENT)
def test_what_devices_send(failures, name):
    found = {key: error for key, error in failures.items() if key.startswith(f"{name}: ")}
    assert found
    for key, error in found.items():
        assert not error, f"{key}: {error}"


def test_on_two_processes():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    env = environment(4)
    command = [sys.executable, PROGRAM.with_name("processes_jax.py"), address, "2"]
    ranks = [
        subprocess.Popen([*command, str(i)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for i in range(2)
    ]
    try:
        for rank in ranks:
            out, _ = rank.communicate(timeout=180)
            assert out.splitlines()[-1:] == ["right"], out[-4000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
