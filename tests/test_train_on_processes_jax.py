"""`gradlab train` as two processes on loopback: one curve, a process killed, Ctrl-C, processes that differ."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")
for needed in ("optax", "orbax.checkpoint", "sklearn"):
    pytest.importorskip(needed)

from gradlab.workloads import folder
from gradlab.workloads.training import Training, TrainingPlan

ROOT = Path(__file__).parents[1]
# Seconds after which a process counts as hung.
LIMIT = 240
# It ends only when it is told to.
ENDLESS = ("--epochs", "100000")


@contextmanager
def two(*words, own=((), ()), patience="120"):
    """Two processes, each with words of its own, or none where they are None; killed whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    join = ("--coordinator-address", f"127.0.0.1:{port}", "--num-processes", "2", "--timeout", patience)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "gradlab", "train", *words, *join, "--process-id", str(i), *more],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, more in enumerate(own)
        if more is not None
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def ended(ranks):
    """Exit code, stdout and stderr of both."""
    said = [rank.communicate(timeout=LIMIT) for rank in ranks]
    return [(rank.returncode, *words) for rank, words in zip(ranks, said, strict=True)]


def losses(place):
    """The losses that a folder holds; none before the first save."""
    return folder.read(place).losses if folder.holds_run(place) else []


def wait_for(ranks, place, steps):
    """Until the folder holds that many steps."""
    until = time.monotonic() + LIMIT
    while len(losses(place)) < steps:
        assert all(rank.poll() is None for rank in ranks), ended(ranks)
        assert time.monotonic() < until, "no save"
        time.sleep(0.1)


def last(text):
    """The last line, which a bar of progress may stand before."""
    return text.rstrip("\n").splitlines()[-1]


def test_a_run_loses_a_process_is_resumed_and_interrupted(tmp_path):
    """Its curve is that of one device, through the kill, the next two processes, and a Ctrl-C that one of them gets."""
    place = tmp_path / "run"
    words = ("digits-mlp", "--side", "jax", "--devices", "4", "--fsdp", "--batch-size", "480", "--save", str(place))
    with two(*words, *ENDLESS, patience="20") as ranks:
        wait_for(ranks, place, 3)
        ranks[1].send_signal(signal.SIGKILL)
        (code, out, err), _ = ended(ranks)
    assert code == 1
    assert out.startswith("digits-mlp: ")
    assert "gradlab: train: process 1 is gone: killed, or out of memory; the run ends after " in last(err)
    assert last(err).endswith(f"; --resume {place} continues from its last save")
    assert "***" not in err
    assert "Traceback" not in err

    before = losses(place)
    with two("--resume", str(place), *ENDLESS, "--devices", "2") as ranks:
        wait_for(ranks, place, len(before) + 3)
        ranks[1].send_signal(signal.SIGINT)
        (code, _, err), (other, *nothing) = ended(ranks)
    assert (code, other, nothing) == (130, 130, ["", ""])
    after = losses(place)
    assert f"interrupted after {len(after)} of 300000 steps; saved to {place}: --resume {place} continues" in last(err)
    assert after[: len(before)] == before

    plan = TrainingPlan.of(folder.read(place).plan)
    one = Training(plan, plan.workload.load(plan.seed, None))
    want = [loss for loss, _ in zip(one.steps(), after, strict=False)]
    assert len(want) == len(after) >= 6
    # Sums of float32 in another order, and what the steps before made of it; the first ones are held closer.
    np.testing.assert_allclose(after[:6], want[:6], rtol=1e-6)
    np.testing.assert_allclose(after, want, rtol=1e-3)


def test_the_coordinator_is_killed(tmp_path):
    place = tmp_path / "run"
    with two("digits-mlp", "--devices", "2", "--batch-size", "480", "--save", str(place), *ENDLESS) as ranks:
        wait_for(ranks, place, 3)
        ranks[0].send_signal(signal.SIGKILL)
        _, (code, out, err) = ended(ranks)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("gradlab: train: process 0 is gone: killed, or out of memory; the run ends after ")


def test_processes_that_differ_refuse_to_start():
    with two("digits-mlp", "--devices", "2", own=((), ("--seed", "3"))) as ranks:
        for code, out, err in ended(ranks):
            assert (code, out) == (2, "")
            assert err == "gradlab: train: seed of process 1 is 3, wanted 0 as on process 0\n"


def test_one_that_fails_ends_the_other(tmp_path):
    """It says why, and so does the other, which had nothing to complain of."""
    gone = tmp_path / "gone.safetensors"
    with two("digits-mlp", "--devices", "2", own=(("--load", str(gone)), ())) as ranks:
        first, second = ended(ranks)
    why = f"{gone}: no such file, wanted a safetensors file, or the folder of a run"
    assert first == (2, "", f"gradlab: {why}\n")
    lost = f"process 0 ended: {why}; the run ends after 0 steps; nothing was saved"
    assert second == (1, "", f"gradlab: train: {lost}\n")


def test_one_that_waits_alone_says_so_in_time():
    with two("digits-mlp", "--devices", "2", own=(None, ()), patience="2") as ranks:
        ((code, out, err),) = ended(ranks)
        assert (code, out) == (2, "")
        assert "where not all 2 processes met within 2 s, wanted process 0 there and each of the others once\n" in err
        assert err.count("\n") == 1
