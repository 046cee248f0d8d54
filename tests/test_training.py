"""Training on both sides: one step in NumPy, agreement, checkpoints, resuming, Ctrl-C, precision, weights converted."""

import ast
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from safetensors.numpy import load_file, save_file

from gradlab import cli
from gradlab.workloads import checkpoint, command, layouts, training
from gradlab.workloads.catalogue import WORKLOADS
from gradlab.workloads.command import TrainArgs
from gradlab.workloads.training import Training, TrainingPlan
from gradlab.workloads.workload import Optimizer, batches

ROOT = Path(__file__).parents[1]
RUNS = [(name, layers) for name in ("torch", "jax") for layers in ("gradlab", "native")]


@pytest.fixture(params=RUNS, ids=" ".join)
def run(request):
    """(side, layers) of which the framework is installed."""
    for module in training.NEEDS[request.param[0]]:
        pytest.importorskip(module)
    return request.param


@pytest.fixture(params=["torch", "jax"])
def name(request):
    for module in training.NEEDS[request.param]:
        pytest.importorskip(module)
    return request.param


def plan(workload, run, **changed):
    chosen = WORKLOADS[workload]
    usual = {"precision": "float32", "optimizer": chosen.optimizer, "batch": chosen.batch, "epochs": 1, "seed": 0}
    return TrainingPlan(workload, *run, **(usual | changed))


def started(plan, weights=None):
    return Training(plan, plan.workload.load(plan.seed, None), weights)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_sigmoid_net_follows_the_chain_rule_written_out(run):
    """Two steps of plain SGD: each weight moves by the gradient that the chain rule gives, spelt out in NumPy."""
    lr = 0.5
    asked = plan("sigmoid-net", run, optimizer=Optimizer("sgd", lr))
    found = started(asked)
    w = {name: a.astype(np.float64) for name, a in asked.workload.network.initial().items()}
    for (x, t), _ in zip(batches(found.data, asked.batch, 1), range(2), strict=False):
        h = sigmoid(x @ w["linear1.weight"].T + w["linear1.bias"])
        y = sigmoid(h @ w["linear2.weight"].T + w["linear2.bias"])
        loss = np.mean((y - t) ** 2)
        dy = 2 * (y - t) / y.size
        dz2 = dy * y * (1 - y)
        dh = dz2 @ w["linear2.weight"]
        dz1 = dh * h * (1 - h)
        grads = {
            "linear1.weight": dz1.T @ x,
            "linear1.bias": dz1.sum(0),
            "linear2.weight": dz2.T @ h,
            "linear2.bias": dz2.sum(0),
        }
        assert next(found.steps()) == pytest.approx(loss, rel=1e-5)
        w = {name: a - lr * grads[name] for name, a in w.items()}
    for name, got in found._trainer.weights().items():
        # A float32 sum of 128 terms; the steps themselves are a thousand times larger.
        np.testing.assert_allclose(got, w[name], rtol=0, atol=5e-7)
        assert abs(got - asked.workload.network.initial()[name]).max() > 1e-4


def test_linear_regression_finds_the_line(run):
    asked = plan("linear-regression", run, epochs=200)
    found = started(asked)
    losses = list(found.steps())
    weights = found._trainer.weights()
    assert weights["linear1.weight"].item() == pytest.approx(1, abs=2e-2)
    assert weights["linear1.bias"].item() == pytest.approx(-1, abs=5e-2)
    assert losses[-1] < 1e-3 < losses[0]
    assert found.test() < 0.03


@pytest.mark.parametrize("workload", ["digits-mlp", "digits-cnn", "recommender", "text-classifier"])
def test_four_runs_agree(workload):
    """The first steps of every network on every side from one start."""
    curves = {}
    for one in RUNS:
        for module in training.NEEDS[one[0]]:
            pytest.importorskip(module)
        found = started(plan(workload, one, batch=32))
        curves[one] = [loss for loss, _ in zip(found.steps(), range(3), strict=False)]
        found.data = found.data._replace(test_x=found.data.test_x[:70], test_t=found.data.test_t[:70])
        assert 0 < found.test() <= 1
    against = curves["torch", "native"]
    assert len(set(against)) == 3
    for losses in curves.values():
        # float32: sums of up to 128 terms, and what two Adam steps make of the difference.
        np.testing.assert_allclose(losses, against, rtol=2e-5)


def test_counterparts_have_the_same_functions_in_the_same_order():
    for stem, kind in (("layers", ast.FunctionDef), ("trainer", ast.ClassDef)):
        said = []
        for name in ("torch", "jax"):
            path = Path(training.__file__).with_name(f"{stem}_{name}.py")
            body = [n for n in ast.parse(path.read_text()).body if isinstance(n, kind) and not n.name.startswith("_")]
            if kind is ast.ClassDef:
                body = [
                    m
                    for c in body
                    for m in c.body
                    if isinstance(m, ast.FunctionDef) and (m.name == "__init__" or m.name[0] != "_")
                ]
            said.append([n.name for n in body])
        assert said[0] == said[1]
        assert len(said[0]) >= 4


def go(asked, **options):
    return command.train(asked, **options)


def metadata(path):
    return checkpoint.read(path)[1]


def test_resuming_continues_the_same_curve_bit_for_bit(run, tmp_path, capsys):
    """In float32 and, with a loss scale, in fp16: hand-written layers on one side, native ones on the other."""
    precision = "fp16" if run in (("torch", "native"), ("jax", "gradlab")) else "float32"
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    asked = TrainArgs("digits-mlp", (run[0],), run[1], epochs=2, batch=480, optimizer="adam", precision=precision)
    assert go(asked, save=whole) == 0
    assert go(asked._replace(epochs=1), save=part) == 0
    assert go(TrainArgs(epochs=2), resume=part) == 0
    one, other = load_file(whole), load_file(part)
    assert one.keys() == other.keys()
    assert len(one["losses"]) == 6
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=key)
    assert metadata(part)["epochs"] == 2
    capsys.readouterr()


def interrupts(k):
    """Steps of which Ctrl-C comes in the middle of the k-th."""
    steps = training.Training.steps

    def stopped(self):
        for n, loss in enumerate(steps(self), 1):
            if n == k:
                os.kill(os.getpid(), signal.SIGINT)
            yield loss

    return stopped


def test_ctrl_c_ends_the_step_saves_and_resumes(name, tmp_path, capsys, monkeypatch):
    whole, part = tmp_path / "whole.safetensors", tmp_path / "deep" / "part.safetensors"
    asked = TrainArgs("digits-mlp", (name,), "native", epochs=2, batch=480)
    assert go(asked, save=whole) == 0
    monkeypatch.setattr(training.Training, "steps", interrupts(2))
    assert go(asked, save=part) == 130
    assert f"interrupted after 2 of 6 steps; saved to {part}: --resume {part} continues" in capsys.readouterr().err
    assert len(load_file(part)["losses"]) == 2
    monkeypatch.undo()
    assert go(TrainArgs(), resume=part) == 0
    for key, value in load_file(whole).items():
        np.testing.assert_array_equal(value, load_file(part)[key])
    assert sorted(os.listdir(part.parent)) == ["part.safetensors"], "a half-written file is left"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_without_save_is_reported(name, capsys, monkeypatch):
    monkeypatch.setattr(training.Training, "steps", interrupts(1))
    assert go(TrainArgs("digits-mlp", (name,), "native", batch=480)) == 130
    assert "interrupted after 1 of 90 steps; nothing was saved: --save names a file" in capsys.readouterr().err


def test_a_full_disk_loses_neither_the_run_nor_the_old_file(name, tmp_path, capsys, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_text("older")

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    assert go(TrainArgs("digits-mlp", (name,), "native", epochs=1, batch=480), save=path) == 2
    said = capsys.readouterr()
    assert f"cannot write {path}: No space left on device\n" in said.err
    assert "final loss" in said.out
    assert path.read_text() == "older"


def test_save_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    checkpoint.save(path, {"a": np.ones(3)})
    before = path.read_bytes()

    def fail(*a):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"a": np.zeros(3)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_weights_travel_by_load(tmp_path, capsys):
    """Saved by one side, loaded by the other: the next loss is the same."""
    for one in RUNS:
        for module in training.NEEDS[one[0]]:
            pytest.importorskip(module)
    firsts = []
    for here, there in (("torch", "jax"), ("jax", "torch")):
        path, after = tmp_path / f"{here}.safetensors", tmp_path / f"{there}.safetensors"
        assert go(TrainArgs("digits-cnn", (here,), "native", epochs=1, batch=96), save=path) == 0
        assert go(TrainArgs("digits-cnn", (there,), "native", epochs=1, batch=480), load=path, save=after) == 0
        firsts.append(load_file(after)["losses"][0])
        assert go(TrainArgs("digits-cnn", (here,), "native", epochs=1, batch=480), load=path, save=after) == 0
        assert load_file(after)["losses"][0] == pytest.approx(firsts[-1], rel=1e-5)
    assert firsts[0] < 2
    capsys.readouterr()


def test_convert_weights_gives_equal_logits(tmp_path, capsys):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    asked = plan("digits-cnn", ("torch", "native"))
    rng = np.random.default_rng(0)
    weights = {k: rng.standard_normal(s).astype(np.float32) / 4 for k, s in asked.workload.network.parameters().items()}
    save_file(weights, tmp_path / "torch.safetensors")
    assert command.convert_weights(tmp_path / "torch.safetensors", tmp_path / "jax.safetensors") == 0
    assert command.convert_weights(tmp_path / "jax.safetensors", tmp_path / "back.safetensors") == 0
    assert "jax.safetensors holds the weights of" in capsys.readouterr().out.replace("\n", "")
    turned, back = load_file(tmp_path / "jax.safetensors"), load_file(tmp_path / "back.safetensors")
    assert turned["conv2.kernel"].shape == (3, 3, 8, 16)
    assert turned["linear1.kernel"].shape == (64, 128)
    assert {k: v.tolist() for k, v in back.items()} == {k: v.tolist() for k, v in weights.items()}

    x = rng.standard_normal((5, 1, 8, 8)).astype(np.float32)
    modules = {"conv1": torch.nn.Conv2d(1, 8, 3, padding=1), "relu1": torch.nn.ReLU(), "pool1": torch.nn.MaxPool2d(2)}
    modules |= {"conv2": torch.nn.Conv2d(8, 16, 3, padding=1), "relu2": torch.nn.ReLU(), "pool2": torch.nn.MaxPool2d(2)}
    modules |= {
        "flatten": torch.nn.Flatten(),
        "linear1": torch.nn.Linear(64, 128),
        "relu3": torch.nn.ReLU(),
        "linear2": torch.nn.Linear(128, 10),
    }
    model = torch.nn.Sequential()
    for name, module in modules.items():
        model.add_module(name, module)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in back.items()})
    want = model(torch.from_numpy(x)).detach().numpy()
    from gradlab.workloads import layers_jax

    params = layouts.nested({k: jax.numpy.asarray(v) for k, v in turned.items()})
    for layers in ("gradlab", "native"):
        got = layers_jax.outputs(layers, asked.workload.network, params, x.transpose(0, 2, 3, 1))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_layouts_of_other_layers():
    weights = {"a.b.weight": np.zeros((2, 3, 4)), "norm.weight": np.zeros(3), "norm.running_mean": np.zeros(3)}
    turned = layouts.to_jax(weights)
    assert {k: v.shape for k, v in turned.items()} == {
        "a.b.kernel": (4, 3, 2),
        "norm.scale": (3,),
        "norm.running_mean": (3,),
    }
    assert {k: v.shape for k, v in layouts.to_torch(turned).items()} == {k: v.shape for k, v in weights.items()}
    assert layouts.flat(layouts.nested(turned)).keys() == turned.keys()


@functools.cache
def in_full(run):
    """The losses of one epoch in float32."""
    return list(started(plan("digits-mlp", run, optimizer=Optimizer("adam", 2e-3))).steps())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_with_float32_weights(run, precision):
    found = started(plan("digits-mlp", run, precision=precision, optimizer=Optimizer("adam", 2e-3)))
    losses, exact = list(found.steps()), in_full(run)
    assert losses[-1] < 0.8 * losses[0]
    # Eight bits of significand, one epoch.
    assert losses == pytest.approx(exact, rel=0.05)
    assert losses != exact
    assert {w.dtype for w in found._trainer.weights().values()} == {np.dtype(np.float32)}
    if precision == "fp16":
        assert found._trainer.state()["scaler.scale"] == 65536


def test_fp16_overflow_halves_the_scale_and_moves_no_weight(run):
    found = started(plan("digits-mlp", run, precision="fp16", optimizer=Optimizer("adam", 2e-3)))
    x, t = next(batches(found.data, 96, 1))
    found._trainer.step(x, t)
    before = found._trainer.state()
    found._trainer.step(x * 1e4, t)
    after = found._trainer.state()
    assert after["scaler.scale"] == before["scaler.scale"] / 2
    for name, weight in found._trainer.weights().items():
        assert np.isfinite(weight).all()
        key = name if name in before else layouts.to_jax({name: weight}).popitem()[0]
        np.testing.assert_array_equal(after[key], before[key])


def saved(tmp_path):
    path = tmp_path / "run.safetensors"
    asked = plan("digits-mlp", ("torch", "native"))
    arrays = asked.workload.network.initial() | {"losses": np.zeros(3)}
    checkpoint.save(path, arrays, asked.as_json())
    return path


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (TrainArgs("digits"), {}, "train: workload is 'digits', wanted one of linear-regression"),
        (TrainArgs("digits-mlp", layers="fast"), {}, "train: layers is 'fast', wanted one of gradlab, native"),
        (
            TrainArgs("digits-mlp", precision="int8"),
            {},
            "train: precision is 'int8', wanted one of float32, bf16, fp16",
        ),
        (TrainArgs("digits-mlp", optimizer="lion"), {}, "train: optimizer is 'lion', wanted one of adam, sgd"),
        (TrainArgs("digits-mlp", lr=-1.0), {}, "train: lr is -1, wanted a positive number"),
        (TrainArgs("digits-mlp", lr=float("nan")), {}, "train: lr is nan, wanted a positive number"),
        (TrainArgs("digits-mlp", seed=2**32), {}, "train: seed is 4294967296, wanted 0 to 2"),
        (
            TrainArgs("digits-mlp", ("torch", "jax")),
            {},
            "train: --side is torch and jax, wanted one; --compare takes both",
        ),
        (TrainArgs("digits-mlp", batch=5000), {}, "train: batch-size is 5000, wanted at most the 1440 training rows"),
        (TrainArgs("digits-mlp"), {"out": Path("x")}, "train: --out is x, wanted none without --compare"),
        (
            TrainArgs("digits-mlp"),
            {"both": True, "save": Path("x")},
            "train: --save is x, wanted none beside --compare",
        ),
        (TrainArgs(), {"both": True}, "train: the workload is missing, wanted one of linear-regression"),
        (TrainArgs("mnist-cnn"), {}, "train: --data is missing, wanted the path of mnist.npz"),
        (
            TrainArgs("mnist-cnn", data=Path("absent.npz")),
            {},
            "absent.npz: No such file or directory, wanted mnist.npz",
        ),
        (TrainArgs("digits-mlp"), {"load": Path("absent")}, "absent: no such file, wanted a safetensors file"),
        (TrainArgs("digits-mlp"), {"load": ROOT}, "is a folder without a run, wanted a safetensors file"),
        (TrainArgs("digits-mlp"), {"load": ROOT / "README.md"}, "README.md: .*, wanted a safetensors file"),
        (TrainArgs(), {"resume": Path("absent")}, "absent: no such file, wanted a safetensors file"),
        (TrainArgs(), {"resume": Path("a"), "load": Path("b")}, "train: --load is b, wanted none beside --resume"),
        (TrainArgs("digits-cnn"), {"load": saved}, "run.safetensors: holds linear1.bias, .*, wanted conv1.bias"),
        (
            TrainArgs(seed=3),
            {"resume": saved},
            "run.safetensors: its seed is 0, wanted 3; leave the option out to continue",
        ),
        (TrainArgs(sides=("jax",)), {"resume": saved}, "run.safetensors: its side is torch, wanted jax"),
        (
            TrainArgs(lr=1.0),
            {"resume": saved},
            "run.safetensors: its optimizer is SGD with momentum 0.9 at 0.1, wanted SGD",
        ),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, asked, options, message):
    pytest.importorskip("torch")
    options = {key: value(tmp_path) if callable(value) else value for key, value in options.items()}
    with pytest.raises(ValueError, match=message) as caught:
        go(asked, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"conv1.kernel": np.zeros(3), "conv1.weight": np.zeros(3)}, "names are both of torch's"),
        ({"bias": np.zeros(3)}, "names are none of torch's"),
        ({}, "names are none of torch's"),
    ],
)
def test_weights_of_no_side(tmp_path, arrays, message):
    path = tmp_path / "w.safetensors"
    save_file(arrays, path)
    with pytest.raises(ValueError, match=message):
        command.convert_weights(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    (tmp_path / "taken").write_text("")
    save_file({"a.weight": np.zeros((2, 2))}, path)
    assert command.convert_weights(path, tmp_path / "taken" / "out.safetensors") == 2


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "w.safetensors"
    network = WORKLOADS["digits-mlp"].network
    wrong = network.initial() | {"linear1.weight": np.zeros((128, 65), np.float32)}
    save_file(wrong, path)
    with pytest.raises(ValueError, match=r"w.safetensors: linear1.weight is \[128, 65\], wanted \[128, 64\]"):
        checkpoint.weights_for(network, path)
    save_file(network.initial() | {"linear1.bias": np.zeros(128, np.int32)}, path)
    with pytest.raises(ValueError, match=r"w.safetensors: linear1.bias is int32, wanted a floating dtype"):
        checkpoint.weights_for(network, path)
    save_file(network.initial(), path, {"gradlab": json.dumps({"name": "digits-mlp"})})
    with pytest.raises(ValueError, match=r"w.safetensors: its run cannot be read"):
        go(TrainArgs(), resume=path)
    save_file(network.initial(), path)
    with pytest.raises(ValueError, match=r"w.safetensors: holds weights only, wanted a run written by --save"):
        go(TrainArgs(), resume=path)


@pytest.mark.parametrize(("hidden", "pip"), [("sklearn", "scikit-learn"), ("safetensors", "safetensors")])
def test_a_missing_tool_is_one_line(tmp_path, capsys, monkeypatch, hidden, pip):
    pytest.importorskip("torch")
    for module in [m for m in sys.modules if m.partition(".")[0] == hidden]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, hidden, None)
    path = tmp_path / "w.safetensors"
    path.write_text("")
    asked = TrainArgs("digits-mlp", ("torch",), "native")
    for options in [{"load": path}, {"save": path}] if hidden == "safetensors" else [{}]:
        assert go(asked, **options) == 2
        assert capsys.readouterr() == ("", f"{pip} is not installed: pip install 'gradlab[demo]'\n")


def test_an_unwritable_place_is_reported_before_training(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(training.Training, "steps", lambda self: pytest.fail("it trained"))
    (tmp_path / "taken").write_text("")
    assert go(TrainArgs("digits-mlp"), save=tmp_path / "taken" / "w.safetensors") == 2
    assert capsys.readouterr().err.startswith(f"cannot write {tmp_path / 'taken' / 'w.safetensors'}: ")


def test_the_command_itself(tmp_path, name, monkeypatch, capsys):
    """As a user types it: trains, saves, resumes, lists; a bad word is one line and exit code 2."""
    path = str(tmp_path / "w.safetensors")
    words = ("linear-regression", "--side", name, "--layers", "native", "--epochs", "3", "--save", path)
    done = subprocess.run([sys.executable, "-m", "gradlab", "train", *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, f"saved to {path}" in done.stdout) == (0, True)
    assert "linear-regression: the points (1, 0), (2, 1)" in done.stdout
    assert "loss" in done.stderr
    assert "final loss" in done.stdout

    def said(*words):
        """The same in this process, where the frameworks are loaded already."""
        monkeypatch.setattr(sys, "argv", ["gradlab", "train", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    code, out, _ = said("--resume", path, "--epochs", "5")
    assert (code, "2 steps in" in out) == (0, True)
    code, out, _ = said()
    assert code == 0
    assert all(word in out for word in ("digits-cnn", "mnist.npz", "Adam at 0.001"))
    code, _, err = said("linear-regression", "--lr", "0")
    assert (code, err) == (2, "gradlab: train: lr is 0, wanted a positive number\n")
    code, _, err = said("--resume", path, "--epochs", "4")
    assert (code, err) == (2, "gradlab: train: epochs is 4, wanted more: 5 steps are already done\n")


def test_kernels_are_named_as_they_ran(run):
    result = training.run(plan("linear-regression", run, epochs=2), WORKLOADS["linear-regression"].load(0, None))
    assert result.kernels == ("native" if run[1] == "native" else "compiled")
    assert len(result.losses) == 2
    assert importlib.import_module(f"gradlab.workloads.trainer_{run[0]}")
