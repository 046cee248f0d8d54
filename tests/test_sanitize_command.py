"""`gradlab sanitize`, pytest's `--gradlab-sanitize` and `gradlab check --sanitize`: exit codes and what is printed."""

import json
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("llvmlite")

from tests.test_cli import run as cli
from tests.test_pytest_plugin import run as plugin

pytest_plugins = ["pytester"]

KERNEL = """\
import sys
import torch
import triton
import triton.language as tl

@triton.jit
def add_one(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i <= n, other=0.0)
    tl.store(y_ptr + i, x + 1.0, mask=i < n)

def call(n):
    x, y = torch.ones(1000), torch.zeros(1000)
    add_one[(4,)](x, y, n, BLOCK=256)
    return y
"""
SCRIPT = (
    KERNEL + "y = call(int(sys.argv[1]))\nprint('sum', y.sum().item(), sys.argv[2:])\nsys.exit(3 if n_faults else 0)\n"
)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace("n_faults", "'--three' in sys.argv"))
    return path


def test_a_fault_is_a_paragraph_and_exit_code_1(monkeypatch, capsys, script, tmp_path):
    kept = tmp_path / "faults.json"
    code, out, err = cli(monkeypatch, capsys, "sanitize", "--json", str(kept), str(script), "1000", "-x", "--json")
    assert code == 1
    assert out == "sum 2000.0 ['-x', '--json']\n"
    assert f"{script}:9: out of bounds: load of x_ptr[1000], outside of 1,000 elements" in err
    assert "add_one: x = tl.load(x_ptr + i, mask=i <= n, other=0.0)" in err
    assert "tensor float32[1000], strides [1]; program (3, 0, 0) of (4, 1, 1), under a mask that is true there" in err
    assert err.endswith("1 fault in 1 launch of Triton kernels on CPU tensors\n")
    found = json.loads(kept.read_text())
    assert (found["schema"], found["launches"]) == (1, 1)
    (fault,) = found["faults"]
    assert (fault["kind"], fault["line"], fault["argument"], fault["index"]) == ("out of bounds", 9, "x_ptr", 1000)


def test_bounds_alone(monkeypatch, capsys, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(KERNEL + "add_one[(4,)](torch.empty(1000), torch.empty(1000), int(sys.argv[1]), BLOCK=256)\n")
    assert cli(monkeypatch, capsys, "sanitize", str(path), "999")[0] == 1
    assert cli(monkeypatch, capsys, "sanitize", "--bounds", str(path), "999")[0] == 0
    code, _, err = cli(monkeypatch, capsys, "sanitize", "--bounds", str(path), "1000")
    assert code == 1
    assert "1 fault in 1 launch" in err


def test_the_first_fault_ends_the_script(monkeypatch, capsys, script):
    code, out, err = cli(monkeypatch, capsys, "sanitize", "--first", str(script), "1000")
    assert (code, out) == (1, "")
    assert "x_ptr[1000]" in err


def test_without_a_fault_the_script_says_how_it_ends(monkeypatch, capsys, script):
    argv, path = sys.argv, list(sys.path)
    for words, wanted in (((), 0), (("--three",), 3)):
        code, out, err = cli(monkeypatch, capsys, "sanitize", str(script), "999", *words)
        assert code == wanted
        assert out.startswith("sum 1998.0")
        assert err == "gradlab sanitize: no fault in 1 launch of Triton kernels on CPU tensors\n"
    monkeypatch.undo()
    assert (sys.argv, sys.path) == (argv, path)


def test_an_error_of_the_script_is_its_own(monkeypatch, capsys, script):
    code, _, err = cli(monkeypatch, capsys, "sanitize", str(script), "many")
    assert code == 1
    assert "ValueError: invalid literal for int() with base 10: 'many'" in err
    assert err.endswith("no fault in 0 launches of Triton kernels on CPU tensors\n")


def test_what_is_no_script(monkeypatch, capsys, tmp_path):
    code, _, err = cli(monkeypatch, capsys, "sanitize", str(tmp_path / "none.py"))
    assert code == 2
    assert err == f"gradlab: sanitize: {tmp_path / 'none.py'} is no file, wanted a Python script\n"


def test_check_examines_its_calls(monkeypatch, capsys):
    code, out, _ = cli(monkeypatch, capsys, "check", "relu", "--side", "torch", "--part", "derivative", "--sanitize")
    assert code == 0
    assert "relu, torch" in out
    assert "gradlab sanitize: no fault in " in out
    assert " 0 launches" not in out


def test_pytest_fails_a_test_with_a_fault(pytester):
    pytester.makepyfile(
        KERNEL
        + """
def test_right():
    call(999)

def test_wrong():
    call(1000)

def test_fixture(check_gradients):
    check_gradients("relu", parts=("derivative",), side="torch", sanitize=True)
"""
    )
    result = plugin(pytester, "--gradlab-sanitize")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*out of bounds: load of x_ptr[[]1000[]], outside of 1,000 elements"])
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")
    plugin(pytester).assert_outcomes(passed=3)
