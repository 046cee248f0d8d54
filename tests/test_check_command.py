"""`gradlab check`: ops, FILE.py::function, files it writes, and what it says of bad input."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradlab.autodiff.checker.target import load
from gradlab.cli import app, main

pytest.importorskip("torch")

FILE = """
import torch

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3
    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 2.9 * x * x * dy

def cube(x):
    return Cube.apply(x)

def right(x, w):
    return x @ w

right_args = (torch.ones(2, 3, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64))
right_reference = lambda x, w: x.numpy() @ w.numpy()

def defaults(x=torch.ones(3, dtype=torch.float64)):
    return x.sin()

def power(x, n=2):
    return x**n

power_cases = {"n": [2, 3]}

def gather(x, t):
    return x[t].sin()
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own_rules.py"
    path.write_text(FILE)
    return path


def run(*words):
    return CliRunner().invoke(app, ["check", *map(str, words)])


def test_a_right_function_exits_0(file):
    result = run(f"{file}::right")
    assert result.exit_code == 0, result.output
    assert "value vs reference" in result.output
    assert run(f"{file}::defaults").exit_code == 0
    assert run(f"{file}::gather", "--shapes", "x[6 2], t[3]: int<6").exit_code == 0


def test_cases_of_the_file(file):
    result = run(f"{file}::power", "--shapes", "x[4]")
    assert result.exit_code == 0
    assert "power, torch" in result.output


def test_a_wrong_function_exits_1_and_is_written(file, tmp_path):
    pytest.importorskip("matplotlib")
    found, plot = tmp_path / "found.json", tmp_path / "plot.svg"
    result = run(f"{file}::cube", "--shapes", "x[3 4]", "--json", found, "--plot", plot, "--order", 1)
    assert result.exit_code == 1
    assert "12 of 12 elements are wrong, everywhere (a constant factor of 0.96666667)" in result.output
    read = json.loads(found.read_text())
    assert not read["ok"]
    assert plot.stat().st_size > 1000
    assert not list(tmp_path.glob("*.part*"))


def test_an_op_with_parts(tmp_path):
    result = run("relu", "--side", "torch", "--part", "derivative", "--part", "precision", "--dtype", "bfloat16")
    assert result.exit_code == 0
    assert "bfloat16 gradient" in result.output
    assert "float16 value" not in result.output.replace("bfloat16", "")
    assert "vmap" not in result.output


BAD = {
    "no function": ("{file}", "wanted an op's name or FILE.py::function"),
    "not there": ("{file}::nothing", "function is 'nothing', wanted one of "),
    "no file": ("{file}x.py::f", "wanted a file that exists"),
    "no arguments": ("{file}::cube", 'arguments of cube are missing, wanted --shapes "x[3 4], w[4 5]"'),
    "shapes": ("{file}::cube --shapes x(3)", "shapes are 'x(3)', wanted for example"),
    "op": ("relux", "op: name is 'relux'"),
    "side": ("relu --side numpy", "side: name is 'numpy'"),
    "part": ("relu --part all", "parts holds 'all'"),
    "dtype": ("relu --dtype int8", "dtypes holds 'int8'"),
    "folder": (
        "relu --json nowhere/x.json",
        "--json or --plot is nowhere/x.json, wanted a file in a folder that exists",
    ),
    "broken": ("{broken}::f", "(ZeroDivisionError: division by zero), wanted a file that can be imported"),
}


def elsewhere(tmp_path, *words):
    """Words of BAD as words of a command in another folder."""
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    return ["check", *(w.format(file=tmp_path / "own_rules.py", broken=broken) for w in words)]


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_2(words, message, file, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gradlab", *elsewhere(tmp_path, *words.split(" "))])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr()
    assert ended.value.code == 2, printed
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_bad_input_of_a_process_is_one_line_and_exit_2(file, tmp_path):
    words, message = BAD["not there"]
    # The package is where this suite found it, also from another folder.
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "gradlab", *elsewhere(tmp_path, words)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_finds_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_own.py").write_text("N = 3\n")
    (tmp_path / "own.py").write_text(
        "import torch\nfrom neighbour_of_own import N\ndef f(x):\n    return N * x\nf_args = torch.ones(2)\n"
    )
    found = load(f"{tmp_path / 'own.py'}::f", None, None, 0)
    assert found.fn(2) == 6
    assert len(found.args) == 1


def test_the_example_shows_what_it_says():
    """Right ones ok, wrong ones wrong, on every side that is installed."""
    example = Path(__file__).parents[1] / "examples" / "check_your_own.py"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, env=env, check=True)
    for side, name in (("torch", "layer_norm"), ("jax", "swish")):
        if importlib.util.find_spec(side):
            assert f"{name}, {side} (1 case)" in result.stdout
            assert (
                f"{name}_wrong on {side}, case 'given', derivative vs finite differences: x[0, 0] is" in result.stdout
            )
            assert f"\n{name} on {side}" not in result.stdout
