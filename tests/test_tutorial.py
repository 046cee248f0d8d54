"""The tutorial, followed by the letter: its files written, its code run in order, its output compared.

`python -m tests.test_tutorial` writes the output of today into the page.
"""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"(<!-- times: not compared -->\n)?^```(python|sh|text)\n(.*?)^```\n", re.M | re.S)


def follow(text):
    """The page's blocks of output: what stands there, what comes of the blocks before it, and whether it may differ."""
    names, printed, outputs = {"__name__": "tutorial"}, "", []
    for number, match in enumerate(BLOCK.finditer(text)):
        varies, kind, block = match[1], match[2], match[3]
        file = re.match(r"# (\w+\.py)\n", block)
        if kind == "text" and printed:
            outputs.append((match.start(3), match.end(3), block, printed, bool(varies)))
            printed = ""
        elif kind == "sh":
            printed = shell(block)
        elif kind == "python" and file:
            with open(file[1], "a") as out:
                out.write(block)
        elif kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, f"block {number} of the tutorial", "exec"), names)
            printed = plain(out.getvalue()) if out.getvalue() else printed
    return outputs


def shell(command):
    """What `pytest ...` and `gradlab ...` print, without seconds."""
    words = [sys.executable, "-m", *shlex.split(command)]
    words += ["-p", "no:cacheprovider"] if "pytest" in words else []
    given = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    ran = subprocess.run(words, capture_output=True, text=True, env=given)
    lines = re.sub(r" +\[100%\]| in [\d.]+s( \([\d:]+\))?", "", ran.stdout + ran.stderr).splitlines()
    return "".join(line.rstrip() + "\n" for line in lines if line)


def plain(text):
    """Without the seconds of a check, and what pads a table's lines."""
    lines = [line.rstrip() for line in text.splitlines() if not line.startswith("seconds:")]
    return "\n".join(lines).rstrip("\n") + "\n"


def numbers_aside(text):
    """Numbers and the widths of columns differ from machine to machine; words, counts of lines and verdicts do not."""
    return re.sub(r"─+| +", " ", re.sub(r"-?\d[\d.]*(e[-+]\d+)?", "#", text))


@contextlib.contextmanager
def folder():
    """An empty working directory from which modules are imported."""
    before, known = os.getcwd(), set(sys.modules)
    with tempfile.TemporaryDirectory() as made:
        os.chdir(made)
        sys.path.insert(0, made)
        try:
            yield
        finally:
            os.chdir(before)
            sys.path.remove(made)
            for name in set(sys.modules) - known:
                if name.startswith("rms_norm"):
                    del sys.modules[name]


def test_the_tutorial_prints_what_it_says():
    for name in ("torch", "triton", "jax"):
        pytest.importorskip(name)
    with folder():
        outputs = follow(PAGE.read_text())
    assert len(outputs) == 10
    for _, _, said, printed, varies in outputs:
        assert varies or numbers_aside(printed) == numbers_aside(said), f"python -m tests.test_tutorial:\n{printed}"


def test_output_that_differs_would_be_seen():
    assert numbers_aside("x 1e-13   ok") == numbers_aside("x 2e-13 ok")
    assert numbers_aside("x 1e-13   ok") != numbers_aside("x 1e-13   wrong")


def test_other_blocks_are_neither_code_nor_output():
    assert set(re.findall(r"^ *```(\w+)$", PAGE.read_text(), re.M)) == {"python", "sh", "text"}


if __name__ == "__main__":
    if importlib.util.find_spec("torch"):
        import torch

        torch.manual_seed(0)
    page = PAGE.read_text()
    with folder():
        written = follow(page)
    for start, end, _, printed, _ in reversed(written):
        page = page[:start] + printed + page[end:]
    PAGE.write_text(page)
