"""Every op on eight devices, under jax's own defaults: `multi_device_jax.py`, run once; and on two processes."""

import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

from gradlab.kernels.spec import specs
from tests.check_programs import environment, found, refuse

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


def test_on_eight_devices():
    """All in one test, so that several workers of pytest do not start it several times."""
    said = found("-m", "tests.multi_device_jax")
    for where in ("in_shard_map", "on_auto_axes", "on_explicit_axes"):
        assert said.keys() >= {f"{where}: {name}" for name in (*specs(), "steps")}
    for name in SENT:
        assert any(key.startswith(f"{name}: ") for key in said), name
    refuse(said)


def test_on_two_processes():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    env = environment("--xla_force_host_platform_device_count=4")
    command = [sys.executable, "-m", "tests.processes_jax", address, "2"]
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
