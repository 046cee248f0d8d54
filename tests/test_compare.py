"""The comparison of four runs: curves that agree, files that are whole, and every way it can end."""

import importlib.util
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

if not all(map(importlib.util.find_spec, ("sklearn", "matplotlib"))):  # Imported, they cost each process a second.
    pytest.skip("sklearn and matplotlib are not installed", allow_module_level=True)

from gradlab.base import files
from gradlab.workloads import command, compare, process, training
from gradlab.workloads import compare_report as report
from gradlab.workloads.command import TrainArgs
from gradlab.workloads.training import TrainingPlan, TrainingRun
from gradlab.workloads.workload import Optimizer

FILES = ["loss.png", "results.json", "table.md"]
both = pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for needs in training.NEEDS.values() for m in needs),
    reason="needs both sides",
)
QUICK = TrainArgs("digits-mlp", epochs=2, batch=480)


def here(plan, on_loss):
    """A run in this process, where a test can reach it."""
    return training.run(plan, plan.workload.load(plan.seed, plan.path), on_loss)


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(compare, "run_in_subprocess", here)


def go(out, asked=QUICK, sides=()):
    return command.train(asked._replace(sides=sides), True, out)


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def hide(monkeypatch, *modules):
    """Let these modules look uninstalled."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in modules else find(name, *a))


def plan(**changed):
    usual = {"precision": "float32", "optimizer": Optimizer("sgd", 0.1, 0.9), "batch": 96, "epochs": 30, "seed": 0}
    return TrainingPlan("digits-mlp", "torch", "gradlab", **(usual | changed))


@both
def test_four_runs_agree(tmp_path, capsys):
    """As a user starts it, each run in a process of its own."""
    out = tmp_path / "made" / "compared"
    assert go(out) == 0
    said = capsys.readouterr()
    found = results(out)
    runs = {(r["side"], r["layers"]): r for r in found["runs"]}
    assert list(runs) == [("torch", "gradlab"), ("torch", "native"), ("jax", "gradlab"), ("jax", "native")]
    assert found["complete"]
    assert found["reference"] == "torch native"
    # float32: losses near 2 are 2e-7 apart.
    assert found["max_dloss_of_all"] < 5e-6
    assert all(len(r["losses"]) == 6 and r["losses"][-1] < r["losses"][0] - 0.1 for r in runs.values())
    assert all(r["seconds"] > 0 for r in runs.values())
    for name in ("torch", "jax"):
        assert runs[name, "gradlab"]["kernels"] == "compiled"
        assert runs[name, "native"]["kernels"] == "native"
    assert found["machine"]["numpy"] == np.__version__
    assert found["workload"]["optimizer"] == {"kind": "sgd", "lr": 0.1, "momentum": 0.9}

    assert sorted(os.listdir(out)) == FILES, "temporary files are left"
    table = [line for line in (out / "table.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4
    for row, run in zip(table[2:], runs.values(), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:4] == [run["side"], run["layers"], run["kernels"], f"{run['losses'][-1]:.6f}"]
        assert all(cell in said.out for cell in cells)
    from matplotlib.image import imread

    assert (out / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    colours = np.unique(imread(out / "loss.png").reshape(-1, 4), axis=0)
    assert len(colours) > 100, "the figure is empty"


@both
@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn"])
def test_full_training_meets_its_expectations(tmp_path, in_process, name):
    # Interpreted Triton would take minutes: the widest pair of the four is jax's.
    assert go(tmp_path, TrainArgs(name), ("jax",)) == 0
    found = results(tmp_path)
    assert found["violations"] == []
    assert all(r["score"] >= found["limits"]["expected_accuracy"] for r in found["runs"])
    assert found["max_dloss_early_of_all"] <= 2e-3


@both
def test_a_wrong_optimizer_is_found(tmp_path, monkeypatch, capsys, in_process):
    import torch

    from gradlab.workloads import layers_torch

    monkeypatch.setattr(
        layers_torch.gradlab_torch, "SGD", lambda params, lr, momentum: torch.optim.SGD(params, 1.05 * lr, momentum)
    )
    assert go(tmp_path, QUICK, ("torch",)) == 1
    line = "torch gradlab and torch native: losses"
    assert line in capsys.readouterr().err
    assert line in results(tmp_path)["violations"][0]


def test_reference_is_torchs_own():
    sides = [("jax", "gradlab"), ("jax", "native"), ("torch", "gradlab"), ("torch", "native")]
    runs = [TrainingRun(*names, "native") for names in sides]
    wanted = ["jax gradlab", "jax native", "jax native", "torch native"]
    assert [report.reference(runs[:n]).name for n in (1, 2, 3, 4)] == wanted


def test_violations():
    fine = TrainingRun("torch", "gradlab", "compiled", [2.0, 1.0, 0.5], 0.95)
    assert report.violations([fine, TrainingRun("jax", "gradlab", "compiled", [2.0, 1.0019, 0.5], 0.97)], plan()) == []
    (line,) = report.violations([fine, TrainingRun("jax", "gradlab", "compiled", [2.0, 1.0021, 0.5], 0.97)], plan())
    assert line.startswith("torch gradlab and jax gradlab: losses 1.000000 and 1.002100 at step 2 ")
    (line,) = report.violations([fine, TrainingRun("jax", "gradlab", "compiled", [2.0, math.nan, 0.5], 0.97)], plan())
    assert "nan at step 2" in line
    (line,) = report.violations([TrainingRun("jax", "native", "native", [2.0], 0.9499)], plan())
    assert line.startswith("jax native: 94.99% right on the test data is below 95%")
    (line,) = report.violations([TrainingRun("jax", "native", "native", [2.0], math.nan)], plan())
    assert line.startswith("jax native: nan%")
    # Promised are the workload's own settings, the first fifty steps, and float32.
    assert report.violations([TrainingRun("jax", "native", "native", [2.0], 0.5)], plan(epochs=1)) == []
    late = [TrainingRun("torch", "gradlab", "compiled", [1.0] * 50 + [x], 0.95) for x in (1, 2)]
    assert report.violations(late, plan()) == []
    assert (
        report.violations(
            [fine, TrainingRun("jax", "gradlab", "compiled", [2.0, 1.5, 0.5], 0.97)], plan(precision="bf16")
        )
        == []
    )


def test_overflow_is_still_json():
    runs = [
        TrainingRun("torch", "gradlab", "compiled", [2.0, math.inf], 0.1),
        TrainingRun("torch", "native", "native", [2.0, math.inf]),
    ]
    found = json.loads(report.results(runs, plan(), "", {}, complete=True), parse_constant=pytest.fail)
    assert found["runs"][1]["final_loss"] is None
    assert found["max_dloss_of_all"] is None
    assert len(found["violations"]) == 3


def stops(after, error):
    """A run elsewhere that ends with an error once so many have finished."""
    count = iter(range(100))

    def run(plan, on_loss):
        if next(count) == after:
            on_loss(2.3)
            raise error
        return here(plan, on_loss)

    return run


@both
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted: 2 of 4 runs had finished"),
        (
            RuntimeError("torch gradlab: OutOfMemoryError: all gone"),
            1,
            "torch gradlab: OutOfMemoryError: all gone: 2 of 4 runs had finished",
        ),
    ],
)
def test_finished_runs_are_saved(tmp_path, monkeypatch, capsys, error, code, line):
    monkeypatch.setattr(compare, "run_in_subprocess", stops(2, error))
    assert go(tmp_path, QUICK, ("jax", "torch")) == code
    said = capsys.readouterr()
    assert line in said.err
    assert "written" in said.out
    found = results(tmp_path)
    assert not found["complete"]
    assert [(r["side"], r["layers"]) for r in found["runs"]] == [("jax", "gradlab"), ("jax", "native")]
    assert sorted(os.listdir(tmp_path)) == FILES


@both
def test_interrupt_before_any_run_leaves_older_files(tmp_path, monkeypatch, capsys):
    (tmp_path / "table.md").write_text("older")
    monkeypatch.setattr(compare, "run_in_subprocess", stops(0, KeyboardInterrupt()))
    assert go(tmp_path, QUICK, ("jax",)) == 130
    assert "0 of 2" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "older"


def test_a_run_in_subprocess_that_fails_says_why():
    pytest.importorskip("torch")
    with pytest.raises(
        RuntimeError, match=r"torch native: DataError: train: --data is missing, wanted the path of mnist.npz"
    ):
        process.run_in_subprocess(
            TrainingPlan("mnist-mlp", "torch", "native", "float32", Optimizer("adam", 1e-3), 128, 1, 0), print
        )


@pytest.fixture
def no_training(monkeypatch):
    """Whatever is wrong is said before anything is trained."""
    monkeypatch.setattr(compare, "run_in_subprocess", lambda *a: pytest.fail("it trained"))


@both
def test_unwritable_folder(tmp_path, capsys, no_training):
    (tmp_path / "taken").write_text("a file")
    for out in (tmp_path / "taken", tmp_path / "taken" / "demo"):
        assert go(out) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"cannot write to {out}: ")
        assert said.count("\n") == 1


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "table.md"
    files.whole(path, lambda p: p.write_text("old"))

    def fail(half):
        half.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.whole(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.md"]
    files.whole(path, lambda p: p.write_text("new"))
    assert path.read_text() == "new"


def test_links_pipes_and_devices_stay_what_they_are(tmp_path):
    """As root a move would put a file in the place of /dev/stdout."""
    link, pipe = tmp_path / "link.md", tmp_path / "pipe"
    link.symlink_to(tmp_path / "table.md")
    files.write_whole(link, "through a link")
    assert link.is_symlink()
    assert (tmp_path / "table.md").read_text() == "through a link"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_whole(pipe, "through a pipe")
    assert os.read(reading, 100) == b"through a pipe"
    os.close(reading)
    assert pipe.is_fifo()


@both
def test_a_missing_framework_is_left_out(tmp_path, monkeypatch, capsys, in_process):
    hide(monkeypatch, "torch")
    assert go(tmp_path) == 0
    said = capsys.readouterr().err
    assert "the torch side is left out: torch is not installed: pip install 'gradlab[torch]'\n" in said
    assert [r["side"] for r in results(tmp_path)["runs"]] == ["jax", "jax"]
    assert results(tmp_path)["reference"] == "jax native"


@both
@pytest.mark.parametrize(
    ("hidden", "line"),
    [
        (("torch", "jax", "optax"), "nothing to train with: pip install 'gradlab[all]'"),
        (("sklearn",), "scikit-learn is not installed: pip install 'gradlab[demo]'"),
        (("sklearn", "matplotlib"), "scikit-learn, matplotlib are not installed: pip install 'gradlab[demo]'"),
    ],
)
def test_nothing_to_train_with(tmp_path, monkeypatch, capsys, no_training, hidden, line):
    hide(monkeypatch, *hidden)
    assert go(tmp_path) == 2
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_bad_data_leaves_no_folder(tmp_path, no_training):
    with pytest.raises(ValueError, match="absent: No such file or directory"):
        go(tmp_path / "new", TrainArgs("mnist-mlp", data=Path("absent")))
    assert not (tmp_path / "new").exists()
