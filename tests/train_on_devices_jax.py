"""`gradlab train` on eight devices of one process: curves, programs, overflow, folders, errors.

A program of its own, because devices are counted when jax starts; it prints what failed, by name, as JSON. What one
device does is what every mesh is held against.
"""

import contextlib
import functools
import io
import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np
import orbax.checkpoint as ocp
import pytest

from gradlab.workloads import command, folder, folder_jax, training
from gradlab.workloads.catalogue import WORKLOADS
from gradlab.workloads.command import TrainArgs
from gradlab.workloads.ranks import SpreadArgs
from gradlab.workloads.trainer_jax import Trainer
from gradlab.workloads.workload import Optimizer, batches
from gradlab.workloads.world import World
from tests.check_programs import report

PLAIN = World()
ADAM = Optimizer("adam", 2e-3)


def mesh(devices, fsdp=False):
    return World(devices=devices, kind="FSDP" if fsdp else "data parallel")


@functools.cache
def data(name):
    return WORKLOADS[name].load(0, None)


def trainer(name, layers, precision, world, settings=ADAM):
    network = WORKLOADS[name].network
    return Trainer(WORKLOADS[name], layers, settings, precision, network.initial(0), world)


@functools.cache
def run(name, layers, precision, world, settings=ADAM):
    """Losses of three steps, the outputs for rows that no number of devices divides, and the weights after."""
    found = trainer(name, layers, precision, world, settings)
    losses = [found.step(x, t) for x, t in list(batches(data(name), 96, 1))[:3]]
    return np.array(losses), found.predict(data(name).test_x[:37]), found.weights()


def same_as_one_device(name, layers, precision, world, settings=ADAM):
    got, want = run(name, layers, precision, world, settings), run(name, layers, precision, PLAIN, settings)
    # Sums of up to 96 terms of that precision in another order, and what three steps make of the difference; a step
    # of Adam is as large as its rate whatever the gradient.
    eps = {"float32": 1e-6, "bf16": 2e-2, "fp16": 2e-3}[precision]
    np.testing.assert_allclose(got[0], want[0], rtol=eps)
    assert abs(got[1] - want[1]).max() <= 10 * eps * abs(want[1]).max()
    start = WORKLOADS[name].network.initial(0)
    for key, weight in want[2].items():
        moved = abs(weight - start[key]).max()
        assert abs(got[2][key] - weight).max() <= 40 * eps * moved + 1e-7, key
        assert moved > 1e-4


def counted(text):
    """The shapes that each kind of collective gives in a compiled program."""
    found = {}
    for shapes, kind in re.findall(r" = (.*?) (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", text):
        found.setdefault(kind, []).append(re.findall(r"\w+\[([\d,]*)\]", shapes))
    return found


def programs():
    """Data parallel: one sum, of all gradients and the loss, and donated state. On one device the plain program."""
    x, t = next(batches(data("digits-mlp"), 96, 1))
    for layers in ("gradlab", "native"):
        plain, one, four = (
            trainer("digits-mlp", layers, "float32", w).program(x, t) for w in (PLAIN, mesh(1), mesh(4))
        )
        assert plain == one
        assert counted(one) == {}
        assert set(counted(four)) == {"all-reduce"}
        (shapes,) = counted(four)["all-reduce"]
        assert sorted(shapes) == sorted(["64,128", "128", "128,10", "10", ""])
        for text in (plain, four):
            # Weights and moments, and the count of steps, are written where they were.
            assert len(re.findall(r"\{\d+\}: \(\d+, \{\}, (?:may|must)-alias\)", text)) >= 12


def sharded_programs():
    """With fsdp each sharded parameter is gathered, its gradient scattered, and no activation moves."""
    x, t = next(batches(data("digits-mlp"), 96, 1))
    found = trainer("digits-mlp", "gradlab", "float32", mesh(4, True))
    collectives = counted(found.program(x, t))
    flat = lambda kind: sorted(shape for shapes in collectives[kind] for shape in shapes)
    assert flat("all-gather") == ["128", "128,10", "64,128"]
    assert flat("reduce-scatter") == ["32", "32,10", "64,32"]
    assert flat("all-reduce") == ["", "10"]
    for name, array in found.live().items():
        parts = {part.data.shape for part in array.addressable_shards}
        shared = array.ndim and max(array.shape) == 128
        assert parts == {tuple(n // 4 if n == 128 and shared else n for n in array.shape)}, name


def overflow(fsdp):
    """Rows of one device overflow: the scale is halved on all, and no weight moves on any."""
    found = trainer("digits-mlp", "gradlab", "fp16", mesh(4, fsdp))
    x, t = next(batches(data("digits-mlp"), 96, 1))
    found.step(x, t)
    before = found.state()
    spoilt = x.copy()
    spoilt[30] *= 1e5
    found.step(spoilt, t)
    after = found.state()
    assert after.pop("scaler.scale") == before.pop("scaler.scale") / 2 == 32768
    assert (before.pop("scaler.good"), after.pop("scaler.good")) == (1, 0)
    for name, array in found.live().items():
        copies = [np.asarray(part.data) for part in array.addressable_shards]
        assert array.is_fully_replicated in (True, not fsdp)
        if array.is_fully_replicated:
            assert all((copy == copies[0]).all() for copy in copies), name
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    found.step(x, t)
    assert any((found.state()[name] != array).any() for name, array in before.items())


def go(asked, devices=None, fsdp=False, **files):
    """The command: its exit code, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command.train(asked, **files, spread=SpreadArgs(fsdp, devices=devices))
    return code, out.getvalue() + err.getvalue()


ASKED = TrainArgs("digits-mlp", ("jax",), optimizer="adam", lr=2e-3, batch=480, epochs=1)


def folders():
    """Saved on 8 sharded devices, resumed on 1, 2, 4 and 8: the same arrays, and the curve of one device."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        assert go(ASKED._replace(epochs=2), save=place / "one.safetensors")[0] == 0
        from safetensors.numpy import load_file

        want = load_file(place / "one.safetensors")["losses"]
        code, said = go(ASKED, 8, True, save=place / "run")
        assert code == 0
        assert "8 devices, FSDP" in said
        saved = folder.read(place / "run")
        assert (saved.side, len(saved.losses), saved.plan["name"]) == ("jax", 3, "digits-mlp")
        held = folder_jax.read(saved.arrays)
        assert {"linear1.kernel", "optimizer.count", "optimizer.mu.linear1.kernel"} <= set(held)
        for devices, fsdp in ((None, False), (1, False), (2, False), (4, True), (8, False)):
            again = place / f"again-{devices}"
            code, said = go(TrainArgs(epochs=2), devices, fsdp, resume=place / "run", save=again)
            if devices is None:
                # One process without --devices writes a file.
                got = load_file(again)["losses"]
            else:
                assert f"{devices} device" in said
                got = folder.read(again).losses
            assert code == 0
            np.testing.assert_array_equal(got[:3], saved.losses)
            np.testing.assert_allclose(got, want, rtol=1e-6)
        # Nothing but resuming happened to the first folder.
        assert folder.read(place / "run") == saved
        # In place, on another mesh: the arrays before are gone.
        assert go(TrainArgs(epochs=2), 2, resume=place / "run")[0] == 0
        assert not saved.arrays.exists()
        assert len(list((place / "run").iterdir())) == 2
        # Weights alone, into a run of one process.
        assert go(ASKED, load=place / "run")[0] == 0
        assert refused(ASKED._replace(name="digits-cnn"), 2, load=place / "run") == (
            f"{place / 'run'}: holds linear1.bias, linear1.weight, linear2.bias, linear2.weight, wanted conv1.bias, "
            "conv1.weight, conv2.bias, conv2.weight, linear1.bias, linear1.weight, linear2.bias, linear2.weight"
        )


def restored_exactly():
    """What a mesh reads is what another one wrote, bit for bit, where its own steps expect it."""
    source = trainer("digits-mlp", "gradlab", "fp16", mesh(8, True))
    for x, t in list(batches(data("digits-mlp"), 96, 1))[:2]:
        source.step(x, t)
    want = source.state()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "step-2-00000000"
        folder_jax.write(path, source.live())
        for world in (PLAIN, mesh(2), mesh(4, True), mesh(8)):
            found = trainer("digits-mlp", "gradlab", "fp16", world)
            places = {key: array.sharding for key, array in found.live().items()}
            found.restore(folder_jax.read(path, found.live()))
            assert {key: array.sharding for key, array in found.live().items()} == places
            got = found.state()
            assert got.keys() == want.keys()
            for key, array in want.items():
                assert got[key].dtype == array.dtype
                np.testing.assert_array_equal(got[key], array, err_msg=key)


def refused(asked, devices, **files):
    """The one line that a run is refused with."""
    with pytest.raises((ValueError, ModuleNotFoundError)) as caught:
        go(asked, devices, **files)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def errors():
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        run, other = place / "run", place / "other"
        assert refused(ASKED, 16) == "train: devices is 16, wanted at most the 8 that jax finds here, of cpu"
        assert refused(ASKED, 7) == "train: batch-size is 480, wanted a multiple of the 7 devices"
        assert "--devices is given for torch, wanted --side jax, or torchrun" in refused(
            ASKED._replace(sides=("torch",)), 2
        )
        assert go(ASKED, 2, save=run)[0] == 0
        assert go(ASKED._replace(name="text-classifier", epochs=1), 2, save=other)[0] == 0
        assert refused(TrainArgs(sides=("torch",)), None, resume=run).startswith(
            f"{run}: its side is jax, wanted torch"
        )
        # Arrays of another network under this run's name.
        said = json.loads((run / "run.json").read_text())
        strange = folder.read(other).arrays
        strange.rename(run / strange.name)
        (run / "run.json").write_text(json.dumps(said | {"arrays": strange.name}))
        assert "linear1.bias is [64], wanted [128]" in refused(TrainArgs(epochs=2), 2, resume=run)
        (run / "run.json").write_text(json.dumps(said | {"side": "torch", "plan": said["plan"] | {"side": "torch"}}))
        assert "side of" in refused(TrainArgs(epochs=2), 2, resume=run)
        # Arrays of which a file is cut short, or which are none.
        (run / "run.json").write_text(json.dumps(said))
        for part in (run / said["arrays"]).rglob("*"):
            if part.is_file() and "ocdbt" in part.name + str(part.parent):
                part.write_bytes(part.read_bytes()[:7])
        assert refused(TrainArgs(epochs=2), 2, resume=run).endswith("wanted what orbax wrote")
        (place / "file").write_text("")
        assert "is a file, wanted a folder" in refused(ASKED, 2, save=place / "file")
        assert "wanted a new folder or one written by --save" in refused(ASKED, 2, save=place)


def a_failed_save_leaves_the_older_run():
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "run"
        assert go(ASKED, 2, save=place)[0] == 0
        before = folder.read(place)
        # What orbax leaves where it is killed while it writes.
        (place / "step-9-00000000.orbax-checkpoint-tmp").mkdir()
        with mock.patch.object(ocp.Checkpointer, "save", side_effect=ValueError("No space left\non device")):
            code, said = go(TrainArgs(epochs=2), 4, resume=place)
        assert code == 2
        assert f"cannot write {place}: No space left\n" in said
        assert folder.read(place) == before
        assert before.arrays.is_dir()
        assert go(TrainArgs(epochs=2), 4, resume=place)[0] == 0
        assert sorted(p.name for p in place.iterdir()) == sorted(["run.json", folder.read(place).arrays.name])


def ctrl_c_saves():
    steps = training.Training.steps

    def stopped(self):
        for n, loss in enumerate(steps(self), 1):
            if n == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield loss

    with tempfile.TemporaryDirectory() as name, mock.patch.object(training.Training, "steps", stopped):
        place = Path(name) / "run"
        code, said = go(ASKED, 4, save=place)
        assert code == 130
        assert f"interrupted after 2 of 3 steps; saved to {place}: --resume {place} continues" in said
        assert len(folder.read(place).losses) == 2


def without_orbax():
    """One line, before anything is trained."""
    hidden = {name: None for name in sys.modules if name.partition(".")[0] == "orbax"}
    with mock.patch.dict(sys.modules, hidden), tempfile.TemporaryDirectory() as name:
        del sys.modules["gradlab.workloads.folder_jax"]
        with mock.patch.object(training.Training, "steps", side_effect=AssertionError("it trained")):
            said = refused(ASKED, 2, save=Path(name) / "run")
    assert said == "orbax-checkpoint is not installed: pip install 'gradlab[scale]'"


CHECKS = {
    f"curve: {name}, {layers}, {precision}, {world}": functools.partial(
        same_as_one_device, name, layers, precision, world, settings
    )
    for name, layers, precision, world, settings in (
        ("digits-mlp", "gradlab", "float32", mesh(2), ADAM),
        ("digits-mlp", "gradlab", "float32", mesh(8, True), ADAM),
        ("digits-mlp", "gradlab", "bf16", mesh(4), ADAM),
        ("digits-mlp", "gradlab", "fp16", mesh(4, True), ADAM),
        ("digits-mlp", "native", "float32", mesh(8), Optimizer("sgd", 0.1, 0.9)),
        ("digits-cnn", "gradlab", "float32", mesh(4), ADAM),
        ("recommender", "native", "float32", mesh(4, True), Optimizer("sgd", 0.1, 0.9)),
    )
}
CHECKS |= {
    "programs": programs,
    "sharded programs": sharded_programs,
    "overflow": functools.partial(overflow, False),
    "overflow, sharded": functools.partial(overflow, True),
    "folders": folders,
    "restored exactly": restored_exactly,
    "errors": errors,
    "a failed save": a_failed_save_leaves_the_older_run,
    "Ctrl-C": ctrl_c_saves,
    "without orbax": without_orbax,
}


def main():
    # Started here: a run would start jax with as many as it asks for.
    assert jax.device_count() == 8
    report(CHECKS)


if __name__ == "__main__":
    main()
