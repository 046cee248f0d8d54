"""Every error for a user is one line: `op: argument is what came, wanted what`; read from the source by AST."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "gradlab").rglob("*.py"))
KINDS = {"ValueError", "TypeError", "IndexError"}
# `linear: `, `optax.sgd: `, or a name that is computed; then what came, then what was wanted.
LINE = re.compile(r"(\{\}|[\w.:{}]+): [^\n]+, wanted [^\n]+")
# Files whose errors are not about an argument of an op, and why.
OTHERS = {
    "gradlab/kernels/cpu/": "a compiler back end: it refuses programs, not arguments, in the words of Triton's language",
    "gradlab/profiling/trace/child.py": "passes on the last line of a profiled process that failed",
    "gradlab/profiling/trace/tools.py": "passes on the error of nsys or ncu",
    "gradlab/kernels/class_losses/": "classes out of range are found on the device and written by one function",
}


def name_of(node):
    return getattr(node, "id", None) or getattr(node, "attr", "")


def kinds(trees):
    """The error classes of users, and those of the package that derive from them."""
    found = set(KINDS)
    for _ in range(3):
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and any(name_of(base) in found for base in node.bases):
                    found.add(node.name)
    return found


def text_of(node):
    """The text of a message, each value in it as {}; None where the message is no literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def strays(tree, users):
    """Line and message of each error that is not of this form; a message that another error made passes."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and name_of(node.exc.func) in users):
            continue
        message = text_of(node.exc.args[0]) if node.exc.args else ""
        # `{path}: {error}` and a variable pass on a message that was read where it is written.
        if message is not None and not re.fullmatch(r"(\w+: )?\{\}(: \{\})?", message) and not LINE.fullmatch(message):
            yield node.lineno, message


def test_every_error_of_a_user_has_the_same_form():
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    users = kinds(trees.values())
    found = []
    for path, tree in trees.items():
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(tuple(OTHERS)):
            found += [f"{name}:{line}: {message}" for line, message in strays(tree, users)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("raise ValueError(f'linear: dtype of x is {dtype}, wanted float32')", 0),
        ("raise ValueError(f'{op}: {argument} is {came}, wanted {wanted}')", 0),
        ("raise ValueError(f'{path}: {error}')", 0),
        ("raise ValueError('unknown dtype')", 1),
        ("raise TypeError(f'linear: unknown dtype {dtype}')", 1),
        ("raise IndexError('dtype is int8, wanted float32')", 1),
        ("raise ValueError('linear: x is 1,\\nwanted 2')", 1),
        ("class Own(ValueError): pass\nraise Own('no such thing')", 1),
        ("raise RuntimeError('anything')", 0),
    ],
)
def test_a_stray_error_would_be_seen(source, count):
    tree = ast.parse(source)
    assert len(list(strays(tree, kinds([tree])))) == count


def test_the_exceptions_are_files():
    assert all((ROOT / name).exists() for name in OTHERS)
