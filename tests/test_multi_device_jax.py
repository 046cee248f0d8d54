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
    *(["nnx_model"] if find_spec("flax") else []),
)


def environment(devices):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    env["PYTHONPATH"] = os.pathsep.join([str(PROGRAM.parents[1]), env.get("PYTHONPATH", "")])
    return env


def test_on_eight_devices():
    """All in one test, so that several workers of pytest do not start it several times."""
    run = subprocess.run([sys.executable, PROGRAM], env=environment(8), capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    for where in ("in_shard_map", "on_auto_axes", "on_explicit_axes"):
        assert found.keys() >= {f"{where}: {name}" for name in (*specs(), "steps")}
    for name in SENT:
        assert any(key.startswith(f"{name}: ") for key in found), name
    failed = {name: how for name, how in found.items() if how}
    assert not failed, "\n".join(f"{name}\n{how}" for name, how in failed.items())


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
