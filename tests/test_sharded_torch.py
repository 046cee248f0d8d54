"""DTensors on four processes, with meshes of four, two by two, two and one; `sharded.py` says what is compared."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)


def test_layers_and_optimizers_on_dtensors_are_those_on_tensors(tmp_path):
    """Numbers, derivatives and what is sent; placements, meshes, modules, steps, checkpoints and refusals."""
    ranks = subprocess.Popen(
        [sys.executable, "-m", "tests.sharded", "4", str(tmp_path / "store")],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said = ranks.communicate(timeout=300)[0]
    finally:
        # The ranks that it forked are of its group, which is gone if all have ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ranks.pid, signal.SIGKILL)
    assert ranks.returncode == 0, said
