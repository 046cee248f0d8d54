"""The documentation site: its configuration names every page and every public name, and it builds without a warning."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text()
NAV = re.search(r"^nav:\n((?: .*\n)+)", CONFIG, re.M)[1]
SHOWN = {page: re.findall(r"^::: (\S+)$", page.read_text(), re.M) for page in sorted((DOCS / "api").glob("*.md"))}


def test_every_page_is_in_the_navigation_once():
    named = re.findall(r": (\S+\.md)$", NAV, re.M)
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_hooks_are_there():
    for name in re.search(r"^hooks: \[(.*)\]$", CONFIG, re.M)[1].split(", "):
        assert (ROOT / name).is_file()


def defined(name):
    """Whether a dotted name is that of a function, class or import of a file of the package."""
    module, _, last = name.rpartition(".")
    file = ROOT / f"{module.replace('.', '/')}.py"
    if not file.is_file():
        return False
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and last in [a.name for a in node.names]:
            return defined(f"{node.module}.{last}")
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == last:
            return True
    return False


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.stem)
def test_the_reference_shows_what_there_is(page):
    assert SHOWN[page]
    assert [name for name in SHOWN[page] if not defined(name)] == []


def test_a_name_that_is_gone_would_be_seen():
    assert not defined("gradlab.torch.liner")
    assert not defined("gradlab.torches.linear")


@pytest.mark.parametrize("side", ["torch", "jax"])
def test_the_reference_shows_every_public_name_of_a_side(side):
    tree = ast.parse((ROOT / "gradlab" / f"{side}.py").read_text())
    public = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign))
    assert sorted(SHOWN[DOCS / "api" / f"{side}.md"]) == sorted(f"gradlab.{side}.{name}" for name in public)


def test_the_reference_shows_every_name_that_needs_no_framework():
    tree = ast.parse((ROOT / "gradlab" / "__init__.py").read_text())
    assigned = [n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    shown = {name.rpartition(".")[2] for name in SHOWN[DOCS / "api" / "gradlab.md"]}
    assert set(ast.literal_eval(assigned[0].value)) <= shown


def described(docstring):
    """The parameters that an `Args:` section describes: "lr, eps: ..." are two."""
    found = re.search(r"^Args:\n((?: .*\n|\n)+)", docstring + "\n", re.M)
    entries = re.findall(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*):(?: |$)", found[1] if found else "", re.M)
    return [name.strip("*") for entry in entries for name in entry.split(", ")]


def strangers(tree):
    """Functions and classes whose docstring describes a parameter that they do not have."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        body = node.body if isinstance(node, ast.ClassDef) else []
        names = {b.target.id for b in body if isinstance(b, ast.AnnAssign)}
        taken = [node] if not body else [b for b in body if getattr(b, "name", "") == "__init__"]
        for fn in taken:
            names |= {a.arg for a in ast.walk(fn.args) if isinstance(a, ast.arg)}
        missing = [name for name in described(ast.get_docstring(node) or "") if name not in names]
        if missing and not any(fn.args.kwarg for fn in taken):
            yield node.name, missing


def test_docstrings_describe_parameters_that_are_there():
    files = sorted((ROOT / "gradlab").rglob("*.py"))
    assert {path: found for path in files if (found := list(strangers(ast.parse(path.read_text()))))} == {}


def test_a_parameter_that_is_gone_would_be_seen():
    text = 'def f(lr, *args):\n    """A step.\n\n    Args:\n        lr, eps: what it takes.\n        args: more.\n    """\n'
    assert list(strangers(ast.parse(text))) == [("f", ["eps"])]
    text = 'class A:\n    """One.\n\n    Args:\n        lr: it.\n    """\n    def __init__(self, rate):\n        pass\n'
    assert list(strangers(ast.parse(text))) == [("A", ["lr"])]


def wide(text):
    """Lines of docstrings past 120 columns."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node):
            first = node.body[0]
            yield from (line for line in lines[first.lineno - 1 : first.end_lineno] if len(line) > 120)


def test_no_line_of_a_docstring_is_past_120_columns():
    files = [p for name in ("gradlab", "tests", "benchmarks", "examples") for p in (ROOT / name).rglob("*.py")]
    assert {path: found for path in files if (found := list(wide(path.read_text())))} == {}
    assert list(wide(f'def f():\n    """{"x" * 120}"""\n'))


def test_the_site_fetches_nothing():
    assert re.search(r"^ +font: false$", CONFIG, re.M)
    assert not re.search(r"https?://", CONFIG)
    assert "mermaid" not in CONFIG + "".join(page.read_text() for page in DOCS.rglob("*.md"))


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="mkdocs is not installed: `make site` installs it")
def test_the_site_builds_without_a_warning(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    text = "".join(page.read_text() for page in (tmp_path / "site").rglob("*.html"))
    tags = re.findall(r"<(?:script|img|iframe|link)[^>]*>", text)
    assert any("stylesheet" in tag for tag in tags)
    assert not [tag for tag in tags if re.search(r"https?:", tag)]
    # A link into the package leads to a page of the site that shows the file.
    assert (tmp_path / "site/source/gradlab/kernels/linear_triton.py.html").is_file()
