"""The structure: who imports whom, counterparts that line up, links and packaging, what an import brings in."""

import ast
import functools
import graphlib
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gradlab
from gradlab.kernels.spec import specs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gradlab"
FILES = sorted(PACKAGE.rglob("*.py"))
BACKEND = PACKAGE / "kernels" / "cpu"
TOP_PACKAGES = ("kernels", "autodiff", "profiling")
TORCH = {"torch", "triton"}
JAX = {"jax", "jaxlib", "optax", "flax", "orbax"}
# A package may import from those below it: its own level or lower.
LEVEL = {"base": 0, "kernels": 1, "autodiff": 2, "": 3, "profiling": 3, "workloads": 4}


def imports(path):
    """Every module that a file imports, lazily or not, with whether the import is at its top."""
    return imported(path.read_text(), path)


@functools.cache
def imported(text, path):
    return list(read(ast.parse(text), path))


def read(tree, path):
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute, one file has one name"
            yield node.module, id(node) in top
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in top
        elif isinstance(node, ast.Call) and name_of(node.func).endswith(("import_module", "__import__")):
            yield from ((name, False) for name in dynamic(node.args[0]))


def name_of(node):
    return getattr(node, "id", None) or getattr(node, "attr", "")


def dynamic(name):
    """The modules that an expression names: a string, or one with a place for the framework in it."""
    if isinstance(name, ast.Constant):
        return [name.value]
    if isinstance(name, ast.JoinedStr):
        parts = [str(p.value) if isinstance(p, ast.Constant) else "*" for p in name.values]
        return [module(p) for p in PACKAGE.parent.glob("".join(parts).replace(".", "/") + ".py")]
    return []


def module(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def side_of(path):
    stem = path.stem
    # Triton wants these names of a back end.
    if stem.endswith(("_triton", "_torch")) or path in (
        PACKAGE / "torch.py",
        BACKEND / "compiler.py",
        BACKEND / "driver.py",
    ):
        return "torch"
    if stem.endswith(("_pallas", "_jax")) or path == PACKAGE / "jax.py":
        return "jax"
    return None


def strays(path):
    """What a file imports of a framework that is not its side's."""
    forbidden = {"torch": JAX, "jax": TORCH, None: TORCH | JAX}[side_of(path)]
    for name, top in imports(path):
        if name.split(".")[0] in forbidden:
            yield name
        if side_of(path) is None and top and re.search(r"_(torch|jax|triton|pallas)$|^gradlab\.(torch|jax)$", name):
            yield f"{name} at its top"


def test_frameworks_stay_on_their_side():
    found = [f"{path.relative_to(ROOT)} imports {name}" for path in FILES for name in strays(path)]
    assert not found, "\n".join(["one framework must do without the other:", *found])


def looking_up(path):
    """What a file imports of a package above its own, or through a link at the root."""
    package = path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] in TOP_PACKAGES:
            yield f"{name} through the link at the root"
        elif parts[0] == "gradlab" and len(parts) > 1 and path.stem not in ("cli", "__main__", "__init__"):
            other = parts[1] if (PACKAGE / parts[1]).is_dir() else ""
            if LEVEL[other] > LEVEL[package]:
                yield f"{name}, which is above {package or 'gradlab'}"


def test_packages_import_downwards():
    found = [f"{path.relative_to(ROOT)} imports {name}" for path in FILES for name in looking_up(path)]
    assert not found, "\n".join(found)


def packages():
    """Which packages import which; the entry points at the top, which know all of it, aside."""
    known = {module(p): p for p in FILES}
    graph = {}
    for path in FILES:
        if path.parent == PACKAGE:
            continue
        for name, _ in imports(path):
            # `side.op("relu")` looks an op up by its name: a registry, which no file of an op's is bound to.
            if path.name.startswith("side_") and name.startswith("gradlab.autodiff.") and name.count(".") == 2:
                continue
            if name in known and known[name].parent not in (path.parent, PACKAGE):
                graph.setdefault(path.parent, set()).add(known[name].parent)
    return graph


def test_no_packages_import_each_other_in_a_circle():
    graph = packages()
    assert PACKAGE / "kernels" in graph[PACKAGE / "autodiff"]
    graphlib.TopologicalSorter(graph).prepare()


def test_the_rules_see_a_breach(tmp_path):
    """The control: a file that breaks them is caught by what the tests above call."""
    breach = tmp_path / "op_triton.py"
    breach.write_text("def f():\n    import jax.numpy\n")
    assert side_of(breach) == "torch"
    assert list(strays(breach)) == ["jax.numpy"]
    breach.write_text("import importlib\nimportlib.import_module(f'gradlab.autodiff.linear_{side}')\n")
    assert {n for n, _ in imports(breach)} >= {"gradlab.autodiff.linear_jax", "gradlab.autodiff.linear_torch"}
    breach.write_text("from .linear import SPEC\n")
    with pytest.raises(AssertionError, match="absolute"):
        list(imports(breach))


def loaded(statement):
    """Modules that a fresh interpreter has after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(out.stdout.split())


# What a user of a layer does not need; importing it takes longer than importing all of gradlab.
EXPENSIVE = {"llvmlite", "rich", "typer", "jinja2", "matplotlib", "sympy"}


@pytest.mark.parametrize(
    ("statement", "brings", "spares"),
    [
        ("import gradlab, gradlab.cli; gradlab.check", set(), TORCH | JAX),
        ("import gradlab.torch", {"torch", "triton"}, JAX | EXPENSIVE | {"torch._dynamo", "torch._inductor"}),
        ("import gradlab.jax", {"jax"}, TORCH | EXPENSIVE | {"optax"}),
    ],
)
def test_a_fresh_import_brings_one_framework(statement, brings, spares):
    if not all(importlib.util.find_spec(name) for name in brings):
        pytest.skip(f"{brings} not installed")
    modules = loaded(statement)
    # The control: the interpreter did load what it was asked for.
    assert "gradlab" in modules
    assert brings <= modules
    assert not modules & spares


def functions(path):
    """Public functions and kernels of a file in order."""
    body = ast.parse(path.read_text()).body
    names = [n.name for n in body if isinstance(n, ast.FunctionDef)]
    return [n for n in names if n.endswith("_kernel") or not n.startswith("_")]


@pytest.mark.parametrize("op", specs())
def test_kernel_counterparts_line_up(op):
    triton, pallas = (functions(PACKAGE / "kernels" / f"{op}_{kind}.py") for kind in ("triton", "pallas"))
    # Torch's in-place op carries its underscore.
    triton = [name.rstrip("_") for name in triton]
    assert [name for name in triton if name in pallas] == pallas
    # Each side has every function; a layout may make a kernel of its own needless there, never one more.
    assert all(name.endswith("_kernel") for name in triton if name not in pallas)


def rules(path):
    """First docstring line of each autograd.Function or custom_vjp rule, in order."""
    for node in ast.parse(path.read_text()).body:
        is_rule = (isinstance(node, ast.ClassDef) and any("Function" in ast.unparse(b) for b in node.bases)) or (
            isinstance(node, ast.FunctionDef) and any("custom_vjp" in ast.unparse(d) for d in node.decorator_list)
        )
        if is_rule:
            yield ast.get_docstring(node).splitlines()[0]


@pytest.mark.parametrize("op", specs())
def test_rule_counterparts_line_up(op):
    torch, jax = (list(rules(PACKAGE / "autodiff" / f"{op}_{side}.py")) for side in ("torch", "jax"))
    assert torch
    assert torch == jax


@pytest.mark.parametrize("op", specs())
def test_an_op_is_five_files_and_a_line_in_each_facade(op):
    for name in (
        f"kernels/{op}.py",
        f"kernels/{op}_triton.py",
        f"kernels/{op}_pallas.py",
        f"autodiff/{op}_torch.py",
        f"autodiff/{op}_jax.py",
    ):
        assert (PACKAGE / name).is_file(), name
    for side in ("torch", "jax"):
        assert f"gradlab.autodiff.{op}_{side}" in (PACKAGE / f"{side}.py").read_text()
    page = ROOT / "docs" / f"{op}.md"
    assert page.is_file(), f"docs/{op}.md: every op has a page"


FOREIGN = re.compile(
    r"torch\.(mm|bmm|matmul|addmm|einsum|softmax|log_softmax|logsumexp|relu)\(|\bF\.\w+\(|nn\.functional"
    r"|jnp\.(dot|matmul|einsum|tensordot)\(|jax\.nn\.\w+\(|lax\.conv|\s@\s\w"
)


@pytest.mark.parametrize("op", specs())
def test_layers_are_written_by_hand(op):
    """No framework's own layer inside ours; `lax.dot_general` stands inside a Pallas kernel alone."""
    for name in (
        f"kernels/{op}_triton.py",
        f"kernels/{op}_pallas.py",
        f"autodiff/{op}_torch.py",
        f"autodiff/{op}_jax.py",
    ):
        text = re.sub(r'"""[\s\S]*?"""|#.*', "", (PACKAGE / name).read_text())
        assert not FOREIGN.search(text), f"{name}: {FOREIGN.search(text)}"
        # Pallas' word for a tile's product stands in one place of a kernel file.
        assert text.count("dot_general") <= name.endswith("_pallas.py")


def test_links_at_the_root_have_no_init():
    for package in TOP_PACKAGES:
        link = ROOT / package
        if link.exists():
            assert os.readlink(link) == f"gradlab/{package}"
        assert not (PACKAGE / package / "__init__.py").exists(), (
            "it would shadow other packages of that name at the root"
        )


def test_wheel_holds_what_git_holds(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files", "gradlab"], cwd=ROOT, capture_output=True, text=True, check=True)
    source = tmp_path / "source"
    for name in [*listed.stdout.split(), "pyproject.toml", "README.md"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import os, setuptools.build_meta as b; print(b.build_wheel(os.environ['OUT']))"
    subprocess.run(
        [sys.executable, "-c", build],
        cwd=source,
        env={**os.environ, "OUT": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("gradlab/")}
    assert held == set(listed.stdout.split())


def test_no_file_is_past_reading():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 425}
    assert not long, "a file past 425 lines has a second idea in it"


def test_the_version_stands_in_the_citation_and_the_changelog():
    assert f"\nversion: {gradlab.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest
    assert newest[1] == gradlab.__version__
