"""Losses whose classes are spread over ranks, on two and four processes; `vocabulary_parallel.py` says what is run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist

import gradlab.torch as lab

if not dist.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

ROOT = Path(__file__).parents[1]


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
            with path.open("w") as out:
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                ranks.append(subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment))
        for rank in ranks:
            # Others wait for a rank that has failed.
            if rank.wait(timeout=300):
                break
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(path.read_text() for path in files)


# dynamo looks at the gradients of what goes on behind a break of its graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiler_breaks_its_graph_at_a_group(tmp_path):
    """What stands before and after is compiled; a whole graph is refused by the compiler."""
    torch.compiler.reset()
    x, t = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 4, 2, 1])
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:

        def fn(x):
            return 3 * lab.cross_entropy(2 * x, t, group=dist.group.WORLD)

        got, want = torch.compile(fn, backend="aot_eager")(x), fn(x)
        assert torch.equal(got, want)
        assert torch.equal(*(torch.autograd.grad(y, x)[0] for y in (got, want)))
        torch.compiler.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(fn, backend="aot_eager", fullgraph=True)(x)
    finally:
        dist.destroy_process_group()
