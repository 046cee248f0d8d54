"""The class losses with their classes split over devices: `vocabulary_parallel_jax.py`, run once on eight."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")

PROGRAM = Path(__file__).with_name("vocabulary_parallel_jax.py")
GROUPS = [
    node.name
    for node in ast.parse(PROGRAM.read_text()).body
    if isinstance(node, ast.FunctionDef) and any("check" in ast.dump(d) for d in node.decorator_list)
]


def test_on_eight_devices():
    """All in one test, so that several workers of pytest do not start it several times."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    env["PYTHONPATH"] = os.pathsep.join([str(PROGRAM.parents[1]), env.get("PYTHONPATH", "")])
    run = subprocess.run([sys.executable, PROGRAM], env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    for group in GROUPS:
        assert any(re.match(rf"{group}(:|$)", name) for name in found), group
    failed = {name: how for name, how in found.items() if how}
    assert not failed, "\n".join(f"{name}\n{how}" for name, how in failed.items())
