"""A README in every package: short, and it names every file that there is and none that there is not."""

import ast
import fnmatch
import re
from pathlib import Path

import pytest

from gradlab.kernels.spec import specs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gradlab"
PACKAGES = sorted({path.parent for path in (ROOT / "gradlab").rglob("*.py")} - {ROOT / "gradlab"})
FOLDERS = [*PACKAGES, *(ROOT / "gradlab" / name for name in ("profiling",)), ROOT / "benchmarks", ROOT / "examples"]
FOLDERS += [ROOT / "tests", ROOT / "tests/mutants", ROOT / "tests/sweeps", ROOT / "results"]


def named(text):
    """The files that a README names, as patterns: `relu.py`, `test_cpu_*.py`, and `<op>_torch.py` for every op's."""
    for name in re.findall(r"`([\w<>*]+\.py)`", text):
        yield from [name.replace("<op>", op) for op in specs()] if "<op>" in name else [name]


def unnamed(folder, text):
    """Files of a folder that its README does not name."""
    patterns = list(named(text))
    return [p.name for p in sorted(folder.glob("*.py")) if not any(fnmatch.fnmatch(p.name, n) for n in patterns)]


def gone(folder, text):
    """Names in a README of files that are not in its folder."""
    return [name for name in named(text) if not any(folder.glob(name))]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_readme_names_the_files_of_its_folder(folder):
    text = (folder / "README.md").read_text()
    assert 5 <= len(text.splitlines()) <= 25
    # Of the tests it names those to begin with.
    if folder != ROOT / "tests":
        assert unnamed(folder, text) == []
    assert gone(folder, text) == []


def imported(folder):
    """The packages of gradlab that the files of a folder import, as paths below it."""
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("gradlab."):
                for parts in (node.module.split(".")[1:], [*node.module.split(".")[1:], node.names[0].name]):
                    if (PACKAGE / "/".join(parts)).with_suffix(".py").is_file():
                        yield "/".join(parts[:-1])


def allowed(text):
    """What a README says that its package may import: packages with all that is below them."""
    sentence = re.search(r"may import (.*?)(?:\. |\.\n|\.$|;)", text.replace("\n", " ") + " ", re.S)
    return re.findall(r"`([\w/.]+)`", sentence[1]) if sentence else []


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_package_imports_what_its_readme_says(folder):
    own = str(folder.relative_to(PACKAGE))
    may = allowed((folder / "README.md").read_text())
    others = {name for name in imported(folder) if name not in ("", own) and not name.startswith(f"{own}/")}
    assert not [o for o in others if not any(o == m or o.startswith(f"{m}/") for m in may)]


def test_a_file_that_is_new_or_gone_would_be_seen(tmp_path):
    (tmp_path / "here.py").touch()
    (tmp_path / "test_cpu_dot.py").touch()
    assert unnamed(tmp_path, "`test_cpu_*.py`") == ["here.py"]
    assert gone(tmp_path, "`here.py` and `there.py`") == ["there.py"]
    assert "linear_torch.py" in list(named("`<op>_torch.py`"))
