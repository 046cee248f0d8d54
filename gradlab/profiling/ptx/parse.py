"""PTX text to a Program. What Triton and LLVM write is read, not every form that PTX allows.

Source: PTX ISA 8.7, "Syntax" and "Debugging Directives".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from gradlab.profiling.ptx.program import UNKNOWN, Instruction, Parameter, Place, Program

_SIZES = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"')
_LOC = re.compile(
    r"\.loc\s+(\d+)\s+(\d+)\s+\d+(?:\s*,\s*function_name\s+([$\w]+)\s*,\s*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?"
)
# What LLVM writes behind it: `file.py:3:5 @[ caller.py:7:9 @[ ... ] ]`.
_FRAME = re.compile(r"([^\s:\[\]]+):(\d+):(\d+)")
_LABEL = re.compile(r"^([$%\w]+)\s*:(?!:)")
_REGISTER = re.compile(r"^\.reg\s+\.(\w+)\s+(.*)$", re.S)
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.[bsuf](\d+)\s+([$\w]+)\s*(?:\[(\d*)\])?")
_LOCAL = re.compile(r"\.local\s+(?:\.align\s+(\d+)\s+)?\.[bsuf](\d+)\s+([$\w]+)\s*(?:\[(\d+)\])?")
_CONSTANT = re.compile(
    r"\.(?:global|const)\s+(?:\.align\s+\d+\s+)?\.[bsu](\d+)\s+([$\w]+)\s*(?:\[(\d+)\])?\s*(?:=\s*([^;]+))?;"
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.[busf](\d+)(?:\s+\.ptr\b[^,]*?\.align\s+\d+)?\s+([$\w]+)\s*(?:\[(\d+)\])?"
)
_FUNCTION = re.compile(r"\.func\s*(?:\(([^)]*)\)\s*)?([$\w]+)\s*\(([^)]*)\)[^{;]*\{")
_CALL = re.compile(r"^call(?:\.uni)?\s+(?:\(([^)]*)\)\s*,\s*)?([$\w]+)\s*(?:,\s*\(([^)]*)\))?")
_RANGED = re.compile(r"^(.*\D)(\d+)$")
_GUARD = re.compile(r"^@(!?)\s*([%$\w]+)\s+(.*)$", re.S)
# Instructions that end a kernel's text in a debugger's way, and mean nothing to an execution.
_NOTHING = ("pragma", "callprototype")


@dataclass
class _Scope:
    """The names that a `{ ... }` declares, and what they are called outside of it.

    Attributes:
        number: of the scope, among all.
        ranges: prefixes of registers, as `%r` of `%r<5>`.
        end: of a function, the label that its end is.
    """

    number: int
    names: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, str] = field(default_factory=dict)
    end: str = ""


class PTXError(ValueError):
    """PTX that cannot be read or executed; the message is one line that names the instruction and its source line."""


def parse(text: str) -> Program:
    """The first kernel of a PTX module.

    Raises:
        PTXError: there is no kernel in it, or a statement that cannot be read.
    """
    entry = re.search(r"\.entry\s+([$\w]+)\s*\(([^)]*)\)[^{]*\{", text)
    if entry is None:
        raise PTXError("emulate: ptx has no .entry, wanted a kernel")
    head = text[: entry.start()]
    files = {int(m[1]): m[2] for m in _FILE.finditer(text)}
    parameters = tuple(Parameter(m[2], _SIZES[m[1]] * int(m[3] or 1)) for m in _PARAMETER.finditer(entry[2]))
    functions = {m[2]: (_names(m[1] or ""), _names(m[3]), text[m.end() :]) for m in _FUNCTION.finditer(text)}
    reader = _Reader(files, functions)
    for match in _SHARED.finditer(head):
        reader.declare_shared(match)
    reader.read(text[entry.end() :])
    return Program(
        entry[1],
        parameters,
        tuple(reader.instructions),
        reader.labels,
        reader.registers,
        reader.shared,
        reader.static,
        reader.local,
        reader.local_size,
        {m[2]: _data(int(m[1]) // 8, int(m[3] or 1), m[4] or "") for m in _CONSTANT.finditer(text)},
    )


class _Reader:
    """Reads the statements of a kernel's body, one after another."""

    def __init__(self, files: dict[int, str], functions: dict[str, tuple[list[str], list[str], str]]) -> None:
        self.files, self.functions = files, functions
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.registers: dict[str, str] = {}
        self.shared: dict[str, int] = {}
        self.static = 0
        self.local: dict[str, int] = {}
        self.local_size = 0
        self.place = UNKNOWN
        self.scopes: list[_Scope] = []
        self.opened = 0
        # Where the functions that are inlined stand: by the line and column that they are inlined at.
        self.at: dict[tuple[int, int, int], Place] = {}

    def read(self, body: str) -> None:
        """Read statements up to the brace that closes what they are in."""
        outside = len(self.scopes)
        for statement in _statements(body):
            if statement == "{":
                self._open()
            elif statement == "}":
                if len(self.scopes) == outside:
                    return
                self.scopes.pop()
            elif statement.startswith((".loc ", ".loc\t")):
                self._locate(statement)
            else:
                self._statement(statement)

    def _open(self) -> _Scope:
        self.opened += 1
        self.scopes.append(_Scope(self.opened))
        return self.scopes[-1]

    def _call(self, match: re.Match[str]) -> None:
        """A function's own statements in place of its call; its parameters are the caller's variables."""
        results, parameters, body = self.functions[match[2]]
        given = [self._name(name.strip()) for group in (match[1], match[3]) for name in (group or "").split(",")]
        outside, self.scopes = self.scopes, []
        scope = self._open()
        scope.names |= dict(zip([*results, *parameters], [name for name in given if name], strict=True))
        scope.end = f"$end@{scope.number}"
        self.read(body)
        self.labels[scope.end] = len(self.instructions)
        self.scopes = outside

    def _locate(self, statement: str) -> None:
        match = _LOC.match(statement)
        if match is None:
            return
        file, line = int(match[1]), int(match[2])
        callers: tuple[Place, ...] = ()
        column = int(re.findall(r"\d+", statement)[2])
        frames = _FRAME.findall(statement.partition("//")[2])[1:]
        if frames and not match[4]:
            callers = tuple(Place(self._path(name), int(at)) for name, at, _ in frames)
        if match[4]:
            caller = self.at.get((int(match[4]), int(match[5]), int(match[6])))
            caller = caller or Place(self.files.get(int(match[4]), ""), int(match[5]))
            callers = (Place(caller.file, caller.line), *caller.callers)
        if line:
            self.place = Place(self.files.get(file, ""), line, callers)
            self.at[file, line, column] = self.place

    def _path(self, name: str) -> str:
        """The file of that name, without its folder, among those of the module."""
        return next((path for path in self.files.values() if path.rsplit("/", 1)[-1] == name), name)

    def _statement(self, statement: str) -> None:
        while label := _LABEL.match(statement):
            self.labels[self._name(label[1], label=True)] = len(self.instructions)
            statement = statement[label.end() :].strip()
        if not statement:
            return
        if match := _REGISTER.match(statement):
            self._declare(match[1], match[2])
        elif statement.startswith("."):
            if match := _SHARED.search(statement):
                self.declare_shared(match)
            elif match := _LOCAL.search(statement) or _PARAMETER.search(statement):
                self._declare_local(match)
        else:
            self._instruction(statement)

    def _declare(self, kind: str, names: str) -> None:
        for name in names.split(","):
            name = name.strip()
            scope = self.scopes[-1] if self.scopes else None
            own = name if scope is None else f"{name}@{scope.number}"
            if "<" in name:
                prefix = name[: name.index("<")]
                own = prefix if scope is None else f"{prefix}@{scope.number}@"
                if scope is not None:
                    scope.ranges[prefix] = own
            elif scope is not None:
                scope.names[name] = own
            self.registers[own] = kind

    def declare_shared(self, match: re.Match[str]) -> None:
        """A variable in shared memory: of a known size, or of the size that a launch gives."""
        align, size, name, number = match.groups()
        if number == "":
            # Dynamic shared memory lies behind what is declared.
            self.shared.setdefault(name, -1)
            return
        unit = int(align or 1)
        self.static = -(-self.static // unit) * unit
        self.shared[name] = self.static
        self.static += _SIZES[size] * int(number or 1)

    def _declare_local(self, match: re.Match[str]) -> None:
        """A variable in a thread's own memory; what is handed to a function is one too."""
        *align, size, name, number = match.groups()
        unit = int((align and align[0]) or _SIZES[size])
        if self.scopes:
            scope = self.scopes[-1]
            own = scope.names[name] = f"{name}@{scope.number}"
        else:
            own = name
        self.local[own] = -(-self.local_size // unit) * unit
        self.local_size = self.local[own] + _SIZES[size] * int(number or 1)

    def _instruction(self, statement: str) -> None:
        text = " ".join(statement.split())
        guard = None
        if match := _GUARD.match(text):
            guard, statement = (self._name(match[2]), bool(match[1])), match[3]
        else:
            statement = text
        opcode, _, rest = statement.partition(" ")
        parts = tuple(opcode.split("."))
        if parts[0] in _NOTHING:
            return
        if (match := _CALL.match(statement)) and match[2] in self.functions:
            self._call(match)
            return
        operands = tuple(self._operand(o) for o in _operands(rest))
        if parts[0] == "ret" and self.scopes and self.scopes[0].end:
            parts, operands = ("bra", "uni"), (self.scopes[0].end,)
        self.instructions.append(Instruction(parts, operands, guard, self.place, text, len(self.instructions)))

    def _operand(self, text: str) -> str:
        if not self.scopes:
            return text
        return re.sub(r"[%$A-Za-z_][\w$]*", lambda m: self._name(m[0]), text)

    def _name(self, name: str, label: bool = False) -> str:
        if label and self.scopes and not name.startswith("$"):
            self.scopes[-1].names[name] = f"{name}@{self.scopes[-1].number}"
        for scope in reversed(self.scopes):
            if name in scope.names:
                return scope.names[name]
            if (match := _RANGED.match(name)) and match[1] in scope.ranges:
                return scope.ranges[match[1]] + match[2]
            if scope.end and name.startswith("$") and "@" not in name:
                return f"{name}@{scope.number}"
        return name


def _statements(body: str) -> Iterator[str]:
    """Instructions, labels with what follows, `.loc` lines, and the braces of scopes; no comments."""
    pending = ""
    body = re.sub(r"/\*.*?\*/", " ", body, flags=re.S)
    for line in body.split("\n"):
        line, _, comment = line.strip().partition("//")
        line = line.strip()
        if line.startswith((".loc ", ".loc\t", ".file", ".pragma")) and not pending.strip():
            yield f"{line} //{comment}"
            continue
        for part in re.split(r"([{};])", line):
            if part == ";":
                yield pending.strip()
                pending = ""
            elif part == "{" and not re.sub(_LABEL, "", pending.strip()).strip():
                if pending.strip():
                    yield pending.strip()
                    pending = ""
                yield "{"
            elif part == "}" and "{" not in pending:
                yield "}"
            else:
                pending += part
        if (label := _LABEL.match(pending.strip())) and label.end() == len(pending.strip()):
            yield pending.strip()
            pending = ""
        pending += " "


def _names(parameters: str) -> list[str]:
    """Of what a function declares."""
    return [part.split()[-1].split("[")[0] for part in parameters.split(",") if part.strip()]


def _data(size: int, number: int, values: str) -> bytes:
    """What a variable holds; what is not given is zero."""
    given = [int(value, 0) for value in re.findall(r"-?\w+", values)]
    return b"".join((value % 256**size).to_bytes(size, "little") for value in given).ljust(size * number, b"\0")


def _operands(text: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    found, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += character
    return [*found, current.strip()] if current.strip() else found
