"""The command line: exit codes, one-line errors, what is printed."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

import gradlab
from gradlab import cli
from gradlab.kernels.spec import specs

OPS = ", ".join(specs())
ROOT = Path(__file__).parents[1]


def run(monkeypatch, capsys, *words):
    """(exit code, stdout, stderr) of the command with these words."""
    monkeypatch.setattr(sys, "argv", ["gradlab", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_check_prints_its_table(monkeypatch, capsys):
    pytest.importorskip("torch")
    code, out, err = run(monkeypatch, capsys, "check", "relu", "--side", "torch")
    assert code == 0
    assert "relu, torch (2 cases)" in out
    assert "gradient vs finite differences of NumPy" in out
    assert "jax" not in out
    assert not err


def test_check_that_fails_names_the_element_and_exits_with_1(monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    from gradlab.kernels import relu_triton

    right = relu_triton.relu_mask

    def wrong(x, mask):
        y = right(x, mask)
        return torch.where(torch.arange(y.numel()).reshape(y.shape) == 3, y + 1, y) if x is not mask else y

    monkeypatch.setattr(relu_triton, "relu_mask", wrong)
    code, out, _ = run(monkeypatch, capsys, "check", "relu", "--side", "torch")
    assert code == 1
    assert "relu on torch, case 'odd', gradient vs finite differences of NumPy: x[3] is" in out.replace("\n", " ")
    assert "wrong" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "conv9d"], f"gradlab: op: name is 'conv9d', wanted one of {OPS}\n"),
        (["check", "relu", "--side", "numpy"], "gradlab: side: name is 'numpy', wanted one of torch, jax\n"),
        (["bench", "conv9d"], f"gradlab: op: name is 'conv9d', wanted one of {OPS}\n"),
        (["bench", "relu", "--side", "numpy"], "gradlab: side: name is 'numpy', wanted one of torch, jax\n"),
        (["demo", "--side", "numpy"], "gradlab: side: name is 'numpy', wanted one of torch, jax\n"),
    ],
)
def test_user_errors_are_one_line_and_exit_with_2(monkeypatch, capsys, words, message):
    code, out, err = run(monkeypatch, capsys, *words)
    assert (code, out, err) == (2, "", message)


@pytest.mark.parametrize("words", [["check", "--order", "3"], ["nonsense"], ["check", "relu", "--seed", "-1"]])
def test_usage_errors_exit_with_2(monkeypatch, capsys, words):
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert "Error: " in err


def test_a_full_disk_is_one_line_and_exits_with_2(monkeypatch, capsys):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "app", full)
    line = "gradlab: output came with 'No space left on device', wanted a file that can be written\n"
    assert run(monkeypatch, capsys) == (2, "", line)


def test_a_framework_that_is_missing_is_reported(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run(monkeypatch, capsys, "check", "relu", "--side", "jax")
    assert code == 2
    assert err == "gradlab: side 'jax' needs jax, which is not installed: pip install 'gradlab[jax]'\n"
    code, _, err = run(monkeypatch, capsys, "check", "relu")
    assert code == 2
    assert err.startswith("gradlab: no side is installed")


def test_version_and_module():
    out = subprocess.run(
        [sys.executable, "-m", "gradlab", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout == f"gradlab {gradlab.__version__}\n"
