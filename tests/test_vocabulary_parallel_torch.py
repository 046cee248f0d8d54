"""Losses whose classes are spread over ranks, on two and four processes; `vocabulary_parallel.py` says what is run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_have_the_losses_and_gradients_of_one(tmp_path, world):
    """Every option, layout and dtype, twice differentiated; what ranks exchange; memory; refusals on every rank."""
    files = [tmp_path / f"rank{rank}" for rank in range(world)]
    ranks = []
    try:
        for rank, path in enumerate(files):
            command = [
                sys.executable,
                "-m",
                "tests.vocabulary_parallel",
                str(rank),
                str(world),
                str(tmp_path / "store"),
            ]
            ranks.append(
                subprocess.Popen(
                    command,
                    cwd=Path(__file__).parents[1],
                    stdout=path.open("w"),
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
            )
        for rank in ranks:
            # The first that fails is named; others would wait for it.
            if rank.wait(timeout=300):
                break
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(path.read_text() for path in files)
