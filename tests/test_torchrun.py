"""`gradlab train` under torchrun: real processes on loopback; `torchrun_ranks.py` is what its ranks run."""

import contextlib
import glob
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

from safetensors.numpy import load_file

from gradlab.workloads import checkpoint, command, folder
from gradlab.workloads.command import TrainArgs
from gradlab.workloads.ranks import SpreadArgs
from gradlab.workloads.world import World, torchrun

ROOT = Path(__file__).parents[1]
ALONE = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
NET = TrainArgs("sigmoid-net", ("torch",), "native", epochs=2)
# Sums of up to 128 terms in float32 and what 16 steps make of the difference.
RTOL = 1e-4


@contextlib.contextmanager
def started(*words):
    """torchrun with these words; neither it nor a process of its is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, words)],
        cwd=ROOT,
        env={**ALONE, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        children = [Path(name).read_text().split() for name in glob.glob(f"/proc/{process.pid}/task/*/children")]
        process.kill()
        for pid in itertools.chain.from_iterable(children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        process.wait()


def said(*words, code=0):
    """What torchrun and its ranks print, line by line."""
    with started(*words) as process:
        text = process.communicate(timeout=240)[0]
    assert process.returncode == code, text
    return text.splitlines()


def losses(path):
    return folder.read(path).losses


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same network trained by one process: the arrays of its file."""
    path = tmp_path_factory.mktemp("alone") / "run.safetensors"
    assert command.train(NET._replace(epochs=4), save=path) == 0
    return load_file(path)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder in which two ranks ran all of `torchrun_ranks.py`."""
    path = tmp_path_factory.mktemp("ranks")
    lines = said("--standalone", "--nproc-per-node", 2, "-m", "tests.torchrun_ranks", "all", path, code=1)
    assert sorted(line for line in lines if line.endswith("found all of it right")) == [
        "rank 0 found all of it right",
        "rank 1 found all of it right",
    ], "\n".join(lines)
    # Then rank 1 fails: torchrun shows its traceback, and the other rank a line.
    ended = "rank 1 ended: ZeroDivisionError: a bug of rank 1; the run ends after 0 steps; nothing was saved"
    assert lines.count(f"gradlab: train: {ended}") == 1, "\n".join(lines)
    return path


def test_two_ranks_train_as_one_process_does(two_ranks, alone):
    np.testing.assert_allclose(losses(two_ranks / "run"), alone["losses"][:4], rtol=RTOL)
    np.testing.assert_allclose(losses(two_ranks / "further"), alone["losses"][:8], rtol=RTOL)


def test_one_process_resumes_loads_and_converts_what_two_saved(two_ranks, alone, tmp_path, capsys):
    path = tmp_path / "further"
    shutil.copytree(two_ranks / "further", path)
    assert command.train(TrainArgs(epochs=4), resume=path) == 0
    np.testing.assert_allclose(losses(path), alone["losses"], rtol=RTOL)
    arrays, run = checkpoint.read(path)
    assert arrays.keys() == alone.keys()
    assert run["epochs"] == 4
    for name, value in alone.items():
        np.testing.assert_allclose(arrays[name], value, rtol=RTOL, atol=1e-6, err_msg=name)
    assert [name for name in sorted(os.listdir(path)) if name != folder.read(path).arrays.name] == ["run.json"]
    assert command.convert_weights(path, tmp_path / "w.safetensors") == 0
    kernel = load_file(tmp_path / "w.safetensors")["linear1.kernel"]
    np.testing.assert_array_equal(kernel, arrays["linear1.weight"].T)
    # A file of one process stays a file.
    assert command.train(NET._replace(epochs=1), load=path, save=tmp_path / "one.safetensors") == 0
    assert load_file(tmp_path / "one.safetensors")["losses"][0] < alone["losses"][0] / 2
    capsys.readouterr()


def test_two_machines_of_two_ranks_resume_and_ctrl_c_on_one_saves_and_ends_both(two_ranks, alone, tmp_path):
    """Four ranks with fully_shard go on with what two saved under DDP."""
    path = tmp_path / "run"
    shutil.copytree(two_ranks / "run", path)
    old = folder.read(path).arrays
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = ("--nnodes", 2, "--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}")
    words = (*meet, "-m", "gradlab", "train", "--fsdp", "--resume", path, "--epochs", 1000)
    with started(*words) as one, started(*words) as other:
        until = time.monotonic() + 120
        while folder.read(path).arrays == old and time.monotonic() < until:
            time.sleep(0.05)
        other.send_signal(signal.SIGINT)
        text = other.communicate(timeout=60)[0] + one.communicate(timeout=60)[0]
    assert one.returncode, text
    assert other.returncode, text
    done = len(losses(path))
    assert text.count(f"interrupted after {done} of 4000 steps; saved to {path}: --resume {path} continues") == 1, text
    # What torchrun adds is its own.
    assert not [line for line in text.splitlines() if line.startswith(("[rank", "gradlab: "))], text
    count = min(done, len(alone["losses"]))
    assert count >= 8
    np.testing.assert_allclose(losses(path)[:count], alone["losses"][:count], rtol=RTOL)


def test_a_rank_that_ends_is_named_by_the_others(tmp_path, capsys):
    """Killed and silent, in the two attempts of one torchrun, of which the second goes on from the last save.

    Of four ranks the one across from rank 1 waits for the two between, and hears of it by the alarm alone.
    """
    words = ("--standalone", "--nproc-per-node", 4, "--max-restarts", 1, "-m", "tests.torchrun_ranks", "ends", tmp_path)
    lines = [line for line in said(*words, code=1) if line.startswith("gradlab: ")]
    run = tmp_path / "run"

    def ends(steps):
        return f"; the run ends after {steps} steps; --resume {run} continues from its last save"

    gone = f"gradlab: train: rank 1 is gone: killed, or out of memory{ends(4)}"
    # The silent one, which wakes up, says so too.
    late = f"gradlab: train: rank 1 has not answered for 10 s{ends(7)}"
    assert lines == [gone] * 3 + [late] * 4
    alone = TrainArgs("linear-regression", ("torch",), "native", batch=4, epochs=6)
    assert command.train(alone, save=tmp_path / "alone.safetensors") == 0
    np.testing.assert_allclose(losses(run), load_file(tmp_path / "alone.safetensors")["losses"], rtol=RTOL)
    capsys.readouterr()


def test_the_world_is_what_torchrun_says():
    given = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    world = torchrun(environ=given)
    assert world == World(5, 8, 1, "DDP")
    assert (world.leads, world.shared, str(world)) == (False, True, "8 processes, DDP")
    assert str(torchrun(True, given | {"RANK": "0", "WORLD_SIZE": "1"})) == "1 process, FSDP"
    assert not World().shared
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        assert torchrun(environ={key: value for key, value in given.items() if key != name}) is None
    rows = list(range(24))
    assert list(itertools.chain(*(rows[World(rank, 8).part(24)] for rank in range(8)))) == rows
    for changed, message in (
        ({"RANK": "8"}, "train: RANK is 8, wanted 0 to 7, as WORLD_SIZE is 8"),
        ({"RANK": "one"}, "train: RANK is 'one', wanted a number, as torchrun sets it"),
    ):
        with pytest.raises(ValueError, match=message):
            torchrun(environ=given | changed)


def test_fsdp_of_one_process_and_a_store_that_is_not_there(monkeypatch):
    with pytest.raises(ValueError, match="train: --fsdp is given to a process that is alone, wanted torchrun"):
        command.train(NET, spread=SpreadArgs(fsdp=True))
    given = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"train: store at 127.0.0.1:1 is not reached \(.*\), wanted torchrun's"):
        command.train(NET, spread=SpreadArgs(timeout=1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("not json", "its run.json cannot be read"),
        ({"arrays": "step-1-zzzzzzzz"}, "its step-1-zzzzzzzz is not there"),
        ({"arrays": "step-1-00000000"}, "its step-1-00000000 is not there"),
        ({"side": "tinygrad"}, "its side is 'tinygrad', wanted one of torch, jax"),
        ({"losses": None}, "its run.json cannot be read"),
        ({"plan": {}}, "its run cannot be read"),
    ],
)
def test_a_folder_that_is_broken_is_one_line(tmp_path, changed, message):
    arrays = folder.arrays_of(tmp_path, 3, "01234567")
    arrays.mkdir()
    older = folder.arrays_of(tmp_path, 2, "01234567")
    older.mkdir()
    saved = folder.SavedRun(arrays, "torch", {"name": "digits-mlp"}, [1.0, 0.5, float("nan")])
    folder.commit(tmp_path, saved)
    assert sorted(os.listdir(tmp_path)) == ["run.json", arrays.name]
    assert str(folder.read(tmp_path)) == str(saved)
    text = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(changed if isinstance(changed, str) else json.dumps(text | changed))
    with pytest.raises(folder.CheckpointError, match=message) as caught:
        command.train(TrainArgs(), resume=tmp_path)
    assert "\n" not in str(caught.value)
