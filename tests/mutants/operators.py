"""Mutants of a rule file, made by machine: each is the file with one small change where derivatives are made."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

METHODS = ("forward", "setup_context", "backward")
# These refuse arguments, or ask where a result is to lie in memory: what they are given makes no derivative.
SPARED_CALLS = ("want_", "refuse", "lies_channels_last", "_by_columns")
# Arguments that are settings: their negation is the same setting, or no setting at all.
SETTINGS = frozenset(
    {
        "masked", "relu", "transposed", "geometry", "channels_last", "ignore_index", "mean", "batch_axes", "j", "k", "scalars",
        "update", "with_p", "transposed_a", "transposed_b", "in_dgrad", "in_wgrad",
    }
)  # fmt: skip
SUMS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
ORDERS = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
EITHER = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)


@dataclass(frozen=True)
class Mutant:
    """One changed statement of a file: where, by which operator, before and after, and the whole file with it."""

    line: int
    operator: str
    text: str
    change: str
    source: str

    def __str__(self) -> str:
        """The line, the operator and what stands where; the parts that did not change are left out."""
        start = next((i for i, (a, b) in enumerate(zip(self.text, self.change, strict=False)) if a != b), 0)
        start = max(0, start - 24)
        return f"{self.line}: {self.operator}: {self.text[start:]} -> {self.change[start:]}"


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a rule file of either side, in the order of its lines."""
    tree = ast.parse(source)
    original = ast.unparse(tree)
    seen = {original}
    # Of the file a mutant writes the one definition anew that it changes.
    parts = [_part(node) for node in tree.body]
    within = {id(s): i for i, node in enumerate(tree.body) for s in ast.walk(node) if isinstance(s, ast.stmt)}
    assert "".join(parts).strip("\n") == original
    found = sorted(_statements(tree), key=lambda found: found[0].lineno)
    strings = sorted({n.value for s, _ in found for n in _inside(s) if _is_string(n)})
    for statement, backward in found:
        text, i = _text(statement), within[id(statement)]
        for operator, line, undo in _changes(statement, tree, backward, strings):
            ast.fix_missing_locations(statement)
            changed = "".join([*parts[:i], _part(tree.body[i]), *parts[i + 1 :]]).strip("\n")
            after = _text(statement)
            undo()
            if changed not in seen:
                seen.add(changed)
                yield Mutant(line, operator, text, after, changed)
    assert ast.unparse(tree) == original


def _part(node: ast.stmt) -> str:
    """A statement of a file, as `ast.unparse` writes it there."""
    apart = isinstance(node, (ast.FunctionDef, ast.ClassDef))
    return "\n" * (1 + apart) + ast.unparse(ast.Module([node], []))


def _text(statement: ast.stmt) -> str:
    """A statement on one line; of one that holds others, its head."""
    return ast.unparse(statement).splitlines()[0] if hasattr(statement, "body") else ast.unparse(statement)


def _statements(tree: ast.Module) -> Iterator[tuple[ast.stmt, bool]]:
    """The statements that make derivatives, and whether each is of a backward."""
    rules = _rules(tree)
    for function, backward in rules:
        yield from ((s, backward) for s in _flat(function.body))
    # What the rules reach by name: helpers, and tables of what goes where.
    known = {s.name: s for s in tree.body if isinstance(s, ast.FunctionDef)}
    tables = {s.targets[0].id: s for s in tree.body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Dict)}
    done = {id(function) for function, _ in rules}
    queue = [function for function, _ in rules]
    while queue:
        for name in {n.id for n in ast.walk(queue.pop()) if isinstance(n, ast.Name)}:
            if name in tables:
                yield tables.pop(name), False
            elif name in known and name.startswith("_") and name not in SPARED_CALLS and id(known[name]) not in done:
                done.add(id(known[name]))
                queue.append(known[name])
                yield from ((s, False) for s in _flat(known[name].body))


def _rules(tree: ast.Module) -> list[tuple[ast.FunctionDef, bool]]:
    """The functions that are rules, and whether each is a backward."""
    found: list[tuple[ast.FunctionDef, bool]] = []
    registered: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "defvjp":
            registered |= {arg.id: place == 1 for place, arg in enumerate(node.args) if isinstance(arg, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(b).endswith("Function") for b in node.bases):
            methods = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name in METHODS]
            found += [(f, f.name == "backward") for f in methods]
        elif isinstance(node, ast.FunctionDef):
            primal = any("custom_vjp" in ast.unparse(d) for d in node.decorator_list)
            if primal or node.name in registered:
                found.append((node, registered.get(node.name, False)))
    return found


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body and of those within, without docstrings, what raises, and what decides to raise."""
    for statement in body:
        if isinstance(statement, (ast.Raise, ast.Assert, ast.Pass)):
            continue
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        inner = getattr(statement, "body", [])
        if not inner or not all(isinstance(s, ast.Raise) for s in inner):
            yield statement
        yield from _flat(inner)
        yield from _flat(getattr(statement, "orelse", []))


def _changes(
    statement: ast.stmt, tree: ast.Module, backward: bool, strings: list[str]
) -> Iterator[tuple[str, int, "_Undo"]]:
    """Changes of a statement, each made in place: the operator, the line, and what takes it back.

    Args:
        strings: all that the rules use, in order; each stands for the one before it.
    """
    for parent, field, place in list(_spots(statement)):
        held = getattr(parent, field)
        old = held if place is None else held[place]
        for operator, new in _replacements(old, parent, field, strings):
            yield operator, old.lineno, _put(parent, field, place, new)
    if isinstance(statement, (ast.If, ast.While)) and not _is_either(statement.test):
        yield "not", statement.lineno, _put(statement, "test", None, ast.UnaryOp(ast.Not(), statement.test))
    if isinstance(statement, ast.Return) and statement.value is not None:
        jax = any(isinstance(s, ast.Import) and s.names[0].name == "jax" for s in tree.body)
        yield from _returned(statement, backward, jax)


def _returned(statement: ast.Return, backward: bool, jax: bool) -> Iterator[tuple[str, int, "_Undo"]]:
    """One gradient less, or with the other sign."""
    value = statement.value
    whole = isinstance(value, ast.Tuple)
    for place, old in enumerate(value.elts if whole else [value]):
        where = (value, "elts", place) if whole else (statement, "value", None)
        if isinstance(old, (ast.Starred, ast.Tuple)) or (isinstance(old, ast.Constant) and old.value is None):
            continue
        if backward:
            zeros = ast.Call(ast.parse("jnp.zeros_like", mode="eval").body, [old], [])
            yield "no gradient", old.lineno, _put(*where, zeros if jax else ast.Constant(None))
            if not isinstance(old, ast.IfExp):
                yield "sign", old.lineno, _put(*where, ast.UnaryOp(ast.USub(), old))


def _replacements(old: ast.AST, parent: ast.AST, field: str, strings: list[str]) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in place of a node, and the operator that says so."""
    if isinstance(old, ast.BinOp) and type(old.op) in SUMS:
        yield "arithmetic", ast.BinOp(old.left, SUMS[type(old.op)](), old.right)
        if isinstance(old.op, ast.Mult):
            yield "factor", old.right
        if isinstance(old.op, (ast.Mult, ast.Div)):
            yield "factor", old.left
    elif isinstance(old, ast.UnaryOp) and isinstance(old.op, (ast.USub, ast.Not)):
        yield "sign" if isinstance(old.op, ast.USub) else "not", old.operand
    elif isinstance(old, ast.Constant):
        yield from _constants(old, strings)
    elif isinstance(old, ast.Compare) and len(old.ops) == 1:
        for other in ORDERS.get(type(old.ops[0]), ()):
            yield "comparison", ast.Compare(old.left, [other()], old.comparators)
    elif isinstance(old, ast.BoolOp):
        yield "and, or", ast.BoolOp(ast.Or() if isinstance(old.op, ast.And) else ast.And(), old.values)
    elif isinstance(old, ast.IfExp) and not _is_either(old.test):
        yield "arms", ast.IfExp(old.test, old.orelse, old.body)
    elif isinstance(old, ast.Call):
        for i in range(len(old.args) - 1):
            yield "arguments", ast.Call(old.func, _swapped(old.args, i), old.keywords)
    elif isinstance(old, ast.Tuple) and not isinstance(parent, ast.Subscript):
        for i in range(len(old.elts) - 1):
            yield "elements", ast.Tuple(_swapped(old.elts, i), old.ctx)
    if isinstance(parent, ast.Call) and field == "args" and isinstance(old, ast.Name) and old.id not in SETTINGS:
        yield "sign", ast.UnaryOp(ast.USub(), old)


def _constants(old: ast.Constant, strings: list[str]) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(old.value, bool):
        yield "boolean", ast.Constant(not old.value)
    elif isinstance(old.value, (int, float)):
        for value in dict.fromkeys((1 - old.value if old.value in (0, 1) else old.value + 1, -old.value)):
            if value != old.value:
                # As ast.parse reads it.
                yield "number", ast.Constant(value) if value >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-value))
    elif _is_string(old):
        other = strings[(strings.index(old.value) + 1) % len(strings)]
        if other != old.value:
            yield "string", ast.Constant(other)


def _spots(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Every place of a statement where an expression stands; statements within have their own."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(SPARED_CALLS):
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_comment", "func") and not isinstance(value, ast.Attribute):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, (ast.expr, ast.comprehension, ast.keyword)) and not isinstance(child, ast.JoinedStr):
                if isinstance(child, ast.expr):
                    yield node, field, place
                yield from _spots(child)


def _inside(statement: ast.stmt) -> Iterator[ast.AST]:
    for parent, field, place in _spots(statement):
        held = getattr(parent, field)
        yield held if place is None else held[place]


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_either(test: ast.expr) -> bool:
    """Whether another comparison is the negation already."""
    return isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], EITHER)


def _swapped(values: list, i: int) -> list:
    return [*values[:i], values[i + 1], values[i], *values[i + 2 :]]


class _Undo:
    """Takes one change back."""

    def __init__(self, parent: ast.AST, field: str, place: int | None, old: ast.AST) -> None:
        self.parent, self.field, self.place, self.old = parent, field, place, old

    def __call__(self) -> None:
        if self.place is None:
            setattr(self.parent, self.field, self.old)
        else:
            getattr(self.parent, self.field)[self.place] = self.old


def _put(parent: ast.AST, field: str, place: int | None, new: ast.AST) -> _Undo:
    """Puts a node into its place in the tree."""
    held = getattr(parent, field)
    undo = _Undo(parent, field, place, held if place is None else held[place])
    new = copy.deepcopy(new)
    if place is None:
        setattr(parent, field, new)
    else:
        held[place] = new
    return undo
