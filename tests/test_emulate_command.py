"""`gradlab emulate` as it is typed: what it refuses, its exit codes, its file, and what an interruption leaves."""

import io
import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from rich.console import Console

from gradlab.base.exit_codes import FOUND, INTERRUPTED, OK
from gradlab.profiling.emulate import command
from gradlab.profiling.emulate.command import EmulateArgs, emulate

KERNELS = """
import torch
import triton
import triton.language as tl


@triton.jit
def twice_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, 2 * tl.load(x_ptr + i, mask=i < n), mask=i < n)


twice_kernel_grid = lambda meta: (triton.cdiv(meta["n"], meta["BLOCK"]),)
twice_kernel_args = lambda: (torch.ones(100), torch.zeros(100), 100, 64)


@triton.jit
def careless_kernel(x_ptr, y_ptr):
    tl.store(y_ptr + tl.arange(0, 64), tl.load(x_ptr + tl.arange(0, 64)))


def careless(x):
    y = torch.empty(64)
    careless_kernel[(1,)](x, y)
    return y


@triton.jit
def bare_kernel(x_ptr):
    tl.store(x_ptr, 1.0)


bare_kernel_args = lambda: (torch.zeros(1),)
"""


@pytest.fixture
def kernels(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(KERNELS)
    return file


def run(target, **args):
    out = io.StringIO()
    code = emulate(EmulateArgs(None if target is None else str(target), **args), Console(file=out, width=100))
    return code, out.getvalue()


@pytest.mark.parametrize(
    ("target", "args", "words"),
    [
        ("nothing", {}, "op: name is 'nothing', wanted one of adam"),
        ("relu", {"case": "enormous"}, "emulate: case is 'enormous', wanted one of "),
        ("relu", {"archs": ["gfx942"]}, "emulate: arch is 'gfx942', wanted one of sm_80, sm_86, sm_89, sm_90"),
        ("relu", {"dtypes": ["int8"]}, "emulate: dtype is 'int8', wanted one of "),
        ("relu", {"order": "random"}, "emulate: order is 'random', wanted one of together, first, last"),
        ("relu", {"gpu": "TPU"}, "emulate: gpu is 'TPU', wanted one of A100"),
        ("relu", {"shapes": "x[3]"}, "emulate: --shapes came with an op, wanted FILE.py::function"),
        ("own.py", {}, "emulate: target is 'own.py', wanted own.py::function, or an op's name"),
        ("own.py::f", {}, "emulate: target is 'own.py::f', wanted a file that exists"),
        ("own.py::f", {"case": "odd"}, "emulate: FILE.py::function came with --case, "),
    ],
)
def test_what_is_refused_is_one_line(target, args, words):
    with pytest.raises(ValueError, match="wanted") as error:
        run(target, sides=["torch"], **args)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path):
    with pytest.raises(ValueError, match="emulate: output is"):
        run("relu", json=tmp_path / "none" / "out.json")


def test_a_kernel_on_its_grid(kernels):
    code, text = run(f"{kernels}::twice_kernel")
    assert code == OK, text
    assert "1 case, 1 launch, no fault; 2 of 2 results right" in text
    assert "twice" in text


def test_a_kernel_without_a_grid_is_refused(kernels):
    with pytest.raises(ValueError, match="wanted a function that launches it, or bare_kernel_grid beside it"):
        run(f"{kernels}::bare_kernel")


def test_a_fault_is_a_paragraph_and_exit_code_1(kernels):
    code, text = run(f"{kernels}::careless", shapes="x[60]", lines=True)
    assert code == FOUND
    assert "own.py:19: out of bounds: load of " in text
    assert "careless_kernel" in text


def test_the_file_has_every_number(tmp_path):
    file = tmp_path / "out.json"
    code, _ = run("relu", sides=["torch"], archs=["sm_80,sm_90"], json=file)
    found = json.loads(file.read_text())
    assert code == OK
    assert found["complete"]
    assert {case["arch"] for case in found["cases"]} == {"sm_80", "sm_90"}
    assert all(launch["totals"]["issued"] > 0 for case in found["cases"] for launch in case["launches"])


def test_an_interruption_keeps_what_was_finished(tmp_path, monkeypatch):
    real, calls = command.op_case, []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(command, "op_case", interrupted)
    file = tmp_path / "out.json"
    code, text = run("relu", sides=["torch"], json=file)
    assert code == INTERRUPTED
    assert "interrupted: 1 case executed" in text
    found = json.loads(file.read_text())
    assert not found["complete"]
    assert len(found["cases"]) == 1
