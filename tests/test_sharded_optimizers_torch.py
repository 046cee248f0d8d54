"""Optimizers and clipping over DTensors, on two processes; `sharded_optimizers.py` says what is compared."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

WORLD = 2


def test_two_ranks_step_and_clip_as_torch_does(tmp_path):
    """On meshes of two, of one, and of both axes; every optimizer, its states, checkpoints and refusals."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sharded_optimizers", str(rank), str(WORLD), str(tmp_path / "store")],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
