"""The demo: four runs that agree, files that are whole, and every way it can end."""

import ast
import importlib
import importlib.util
import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from gradlab.autodiff.side import side
from gradlab.profiling import machine
from gradlab.workloads import demo, digits, perceptron
from gradlab.workloads import demo_report as report
from gradlab.workloads.demo_report import Run

FILES = ["loss.png", "results.json", "table.md"]
both = pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for needs in demo.NEEDS.values() for m in needs), reason="needs both sides"
)


@pytest.fixture
def untrained(monkeypatch):
    """Too few steps to learn from: the promise of accuracy is taken back."""
    monkeypatch.setattr(report, "LEAST_ACCURACY", 0.0)


def hide(monkeypatch, *modules):
    """Let these modules look uninstalled."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in modules else find(name, *a))


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def loss(weights, x, t):
    """The workload's loss in NumPy, float64."""
    w1, b1, w2, b2 = (w.astype(np.float64) for w in weights)
    logits = np.maximum(x @ w1 + b1, 0) @ w2 + b2
    return (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(t)), t]).mean()


def test_digits():
    data = digits.load(3)
    assert data.train_x.shape == (1440, 64)
    assert data.test_x.shape == (357, 64)
    assert data.train_x.dtype == np.float32
    assert (data.train_x.min(), data.train_x.max()) == (0, 1)
    # Stratified: each digit's share of the test images is its share of all of them, within one image.
    shown = np.bincount(np.concatenate([data.train_t, data.test_t]))
    assert abs(np.bincount(data.test_t) - shown * 357 / 1797).max() <= 1
    again, other = digits.load(3), digits.load(4)
    assert all((a == b).all() for a, b in zip(data, again, strict=True))
    assert (data.test_x != other.test_x).any()


def test_batches():
    x = np.arange(1440)
    given = list(perceptron.batches(x, -x, epochs=2, seed=5))
    assert len(given) == perceptron.steps(1440, 2) == 6
    assert all((rows == -t).all() and len(rows) == perceptron.BATCH for rows, t in given)
    first, second = (np.concatenate([rows for rows, _ in given[i : i + 3]]) for i in (0, 3))
    assert sorted(first) == sorted(second) == x.tolist()
    assert (first != second).any()
    again = perceptron.batches(x, -x, epochs=2, seed=5)
    assert all((a == b).all() for (a, _), (b, _) in zip(given, again, strict=True))
    assert (next(perceptron.batches(x, -x, seed=6))[0] != given[0][0]).any()


def test_initial_weights():
    start = perceptron.initial(1)
    assert [w.shape for w in start] == [(64, 128), (128,), (128, 10), (10,)]
    assert {w.dtype for w in start} == {np.dtype(np.float32)}
    # Sample deviations of 8192 and 1280 normal values: within five standard errors.
    assert start.w1.std() == pytest.approx(math.sqrt(2 / 64), rel=5 / math.sqrt(2 * 8192))
    assert start.w2.std() == pytest.approx(math.sqrt(1 / 128), rel=5 / math.sqrt(2 * 1280))
    assert (start.w1 == perceptron.initial(1).w1).all()
    assert (start.w1 != perceptron.initial(2).w1).any()


@pytest.mark.parametrize("layers", ["hand", "native"])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_one_step(name, layers):
    for module in demo.NEEDS[name]:
        pytest.importorskip(module)
    network = importlib.import_module(f"gradlab.workloads.perceptron_{name}")
    data, start = digits.load(), perceptron.initial()
    batch = next(perceptron.batches(data.train_x, data.train_t))
    training = network.train(layers, start, [batch])
    # A mean of 480 float32 losses near 2.4, each a sum of 128 terms.
    assert next(training) == pytest.approx(loss(start, *batch), rel=1e-5)
    with pytest.raises(StopIteration) as end:
        next(training)
    # Adam's first step moves a weight by the rate against the sign of its gradient; without a gradient, not at all.
    trained = end.value.value
    for was, now in zip(start, trained, strict=True):
        assert now.shape == was.shape
        assert now.dtype == np.float32
        assert abs(now - was).max() == pytest.approx(perceptron.LR, rel=1e-3)
    assert loss(trained, *batch) < loss(start, *batch) - 0.01
    h = np.maximum(data.test_x @ trained.w1 + trained.b1, 0)
    wanted = (h @ trained.w2 + trained.b2).argmax(1)
    assert (network.predict(layers, trained, data.test_x) == wanted).all()


def test_twins_line_up():
    def said(name):
        path = Path(perceptron.__file__).with_name(f"perceptron_{name}.py")
        body = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        return [(node.name, [a.arg for a in node.args.args], ast.get_docstring(node)) for node in body]

    assert len(said("torch")) == 6
    assert said("torch") == said("jax")


@both
def test_four_runs_agree(tmp_path, capsys, untrained):
    out = tmp_path / "made" / "demo"
    assert demo.run(out, epochs=2) == 0
    said = capsys.readouterr()

    found = results(out)
    runs = {(r["side"], r["layers"]): r for r in found["runs"]}
    assert list(runs) == [("torch", "hand"), ("torch", "native"), ("jax", "hand"), ("jax", "native")]
    assert found["complete"]
    assert found["workload"]["steps"] == 6
    # Losses near 2 are 2e-7 apart in float32; optax's bias correction adds 1e-5 of a step that lowers the loss by 0.05.
    assert found["largest_distance"] < 5e-6
    # The control: what the last batch would have cost had nothing been learnt is far above.
    data = digits.load()
    *_, last = perceptron.batches(data.train_x, data.train_t, epochs=2)
    assert all(0.5 < r["final_loss"] < loss(perceptron.initial(), *last) - 0.1 for r in runs.values())
    assert all(r["seconds"] > 0 for r in runs.values())
    for name in ("torch", "jax"):
        assert runs[name, "hand"]["kernels"] == ("interpreted" if side(name).interpreted() else "compiled")
        assert runs[name, "native"]["kernels"] == "native"
    assert found["machine"]["numpy"] == np.__version__

    assert sorted(os.listdir(out)) == FILES, "temporary files are left"
    table = [line for line in (out / "table.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4
    for row, run in zip(table[2:], runs.values(), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:4] == [run["side"], run["layers"], run["kernels"], f"{run['final_loss']:.6f}"]
        for cell in cells[:4]:
            assert cell in said.out
    from matplotlib.image import imread

    assert (out / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    colours = np.unique(imread(out / "loss.png").reshape(-1, 4), axis=0)
    assert len(colours) > 100, "the figure is empty"


@both
def test_full_training_keeps_its_promises(tmp_path):
    # The widest pair of the four; interpreted Triton would take half a minute.
    assert demo.run(tmp_path, sides=("jax",)) == 0
    found = results(tmp_path)
    assert found["violations"] == []
    assert all(r["test_accuracy"] >= 0.95 for r in found["runs"])
    assert found["largest_distance"] <= 5e-4


@both
def test_a_wrong_optimizer_is_found(tmp_path, monkeypatch, capsys, untrained):
    import torch

    from gradlab.workloads import perceptron_torch

    monkeypatch.setattr(perceptron_torch.hand, "Adam", lambda params, lr: torch.optim.Adam(params, lr=1.05 * lr))
    assert demo.run(tmp_path, epochs=1, sides=("torch",)) == 1
    line = "torch hand and torch native: losses"
    assert line in capsys.readouterr().err
    assert line in results(tmp_path)["violations"][0]


def test_reference_is_torchs_own():
    sides = [("jax", "hand"), ("jax", "native"), ("torch", "hand"), ("torch", "native")]
    runs = [Run(*names, "native") for names in sides]
    assert [report.reference(runs[:n]).name for n in (1, 2, 3, 4)] == ["jax hand"] + ["jax native"] * 2 + [
        "torch native"
    ]


@both
def test_low_accuracy_is_found(tmp_path, capsys):
    assert demo.run(tmp_path, epochs=1, sides=("jax",)) == 1
    said = capsys.readouterr().err
    assert "jax hand: test accuracy" in said
    assert "jax native: test accuracy" in said


def test_violations():
    fine = Run("torch", "hand", "compiled", [2.0, 1.0, 0.5], 0.95)
    assert report.violations([fine, Run("jax", "hand", "compiled", [2.0, 1.0004, 0.5], 0.97)]) == []
    (line,) = report.violations([fine, Run("jax", "hand", "compiled", [2.0, 1.0006, 0.5], 0.97)])
    assert line.startswith("torch hand and jax hand: losses 1.000000 and 1.000600 at step 2 ")
    (line,) = report.violations([fine, Run("jax", "hand", "compiled", [2.0, math.nan, 0.5], 0.97)])
    assert "nan at step 2" in line
    (line,) = report.violations([Run("jax", "native", "native", [2.0], 0.9499)])
    assert line.startswith("jax native: test accuracy")
    (line,) = report.violations([Run("jax", "native", "native", [2.0], math.nan)])
    assert line.startswith("jax native: test accuracy")


def test_overflow_is_still_json():
    runs = [Run("torch", "hand", "compiled", [2.0, math.inf], 0.1), Run("torch", "native", "native", [2.0, math.inf])]
    found = json.loads(report.results(runs, {}, {}, complete=True), parse_constant=pytest.fail)
    assert found["runs"][1]["final_loss"] is None
    assert found["largest_distance"] is None
    assert len(found["violations"]) == 3


def interrupt(layers, start, batches):
    """A training that is stopped by Ctrl-C after its first step."""
    yield 2.3
    raise KeyboardInterrupt


@both
def test_interrupt_keeps_finished_runs(tmp_path, monkeypatch, capsys, untrained):
    from gradlab.workloads import perceptron_torch

    monkeypatch.setattr(perceptron_torch, "train", interrupt)
    assert demo.run(tmp_path, epochs=1, sides=("jax", "torch")) == 130
    said = capsys.readouterr()
    assert "interrupted: 2 of 4 runs had finished" in said.err
    assert "written" in said.out
    found = results(tmp_path)
    assert not found["complete"]
    assert [(r["side"], r["layers"]) for r in found["runs"]] == [("jax", "hand"), ("jax", "native")]
    assert sorted(os.listdir(tmp_path)) == FILES


@both
def test_interrupt_before_any_run_leaves_older_files(tmp_path, monkeypatch, capsys):
    from gradlab.workloads import perceptron_jax

    (tmp_path / "table.md").write_text("older")
    monkeypatch.setattr(perceptron_jax, "train", interrupt)
    assert demo.run(tmp_path, epochs=1, sides=("jax",)) == 130
    assert "0 of 2" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "older"


@pytest.fixture
def no_training(monkeypatch):
    """Whatever is wrong is said before anything is trained."""
    monkeypatch.setattr(demo, "_train", lambda *a: pytest.fail("it trained"))


def test_unwritable_folder(tmp_path, capsys, no_training):
    (tmp_path / "taken").write_text("a file")
    for out in (tmp_path / "taken", tmp_path / "taken" / "demo"):
        assert demo.run(out) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"cannot write to {out}: ")
        assert said.count("\n") == 1


def test_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "table.md"
    report.write(path, lambda p: p.write_text("old"))

    def fail(half):
        half.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        report.write(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.md"]
    report.write(path, lambda p: p.write_text("new"))
    assert path.read_text() == "new"


@both
def test_a_missing_framework_is_left_out(tmp_path, monkeypatch, capsys, untrained):
    hide(monkeypatch, "torch")
    assert demo.run(tmp_path, epochs=1) == 0
    said = capsys.readouterr().err
    assert "the torch side is left out: torch is not installed: pip install 'gradlab[torch]'\n" in said
    assert [r["side"] for r in results(tmp_path)["runs"]] == ["jax", "jax"]
    assert results(tmp_path)["reference"] == "jax native"


@pytest.mark.parametrize(
    ("hidden", "line"),
    [
        (("torch", "jax", "optax"), "torch, jax, optax are not installed: pip install 'gradlab[all]'"),
        (("sklearn",), "scikit-learn is not installed: pip install 'gradlab[demo]'"),
        (("sklearn", "matplotlib"), "scikit-learn, matplotlib are not installed: pip install 'gradlab[demo]'"),
    ],
)
def test_nothing_to_train_with(tmp_path, monkeypatch, capsys, no_training, hidden, line):
    hide(monkeypatch, *hidden)
    assert demo.run(tmp_path) == 2
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"epochs": 0}, "epochs is 0, wanted at least 1"),
        ({"seed": -1}, "seed is -1, wanted 0 to 2^32 - 1"),
        ({"sides": ("numpy",)}, "sides are numpy, wanted some of torch, jax"),
        ({"sides": ()}, "sides are none, wanted some of torch, jax"),
    ],
)
def test_bad_arguments(tmp_path, capsys, no_training, arguments, line):
    assert demo.run(tmp_path / "new", **arguments) == 2
    assert capsys.readouterr().err == line + "\n"
    assert not (tmp_path / "new").exists()


def test_machine():
    found = machine.describe()
    assert found["numpy"] == np.__version__
    assert int(found["cores"]) >= 1
    assert found["date"].endswith("UTC")
    assert all(isinstance(value, str) and value and "\n" not in value for value in found.values())


def test_commit_is_the_packages_own(tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *words], cwd=tmp_path, check=True)

    package = tmp_path / "gradlab" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    (tmp_path / "other").write_text("")
    git("init", "--quiet")
    git("add", "other")
    git("commit", "--quiet", "--message", "somebody else's")
    assert machine._commit(tmp_path) == ""
    git("add", ".")
    git("commit", "--quiet", "--message", "ours")
    commit = machine._commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "results").write_text("a measurement changes no code")
    assert machine._commit(tmp_path) == commit
    package.write_text("changed = True")
    assert machine._commit(tmp_path) == f"{commit} dirty"
