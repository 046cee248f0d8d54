"""Where the operations of a kernel's Triton IR stand in its source, in the form that Triton's compiler reads."""

import re

# `#loc7 = loc(...)`: one definition a line.
_DEFINITION = re.compile(r"^#(\w+) = loc\((.*)\)$", re.M)
_FILE = re.compile(r'"([^"]*)":(\d+):(\d+)')
_Frame = tuple[str, str, str]


def placed(text: str, file: str, line: int) -> str:
    """The module with every operation on the line of `file` that it was written on, and its function at `line`.

    Pallas names an operation's place as a chain of calls, which ends in whoever called the kernel, and gives the
    function none at all. Of a chain the innermost place in `file` is taken.
    """
    if not file:
        return text
    definitions = dict(_DEFINITION.findall(text))

    def moved(found: re.Match[str]) -> str:
        frame = next((f for f in _frames(found.group(2), definitions) if f[0] == file), None)
        return f'#{found.group(1)} = loc("{frame[0]}":{frame[1]}:{frame[2]})' if frame else found.group(0)

    text = _DEFINITION.sub(moved, text)
    return re.sub(r"^  \} loc\(#loc\d*\)$", f'  }} loc("{file}":{line}:0)', text, flags=re.M)


def _frames(body: str, definitions: dict[str, str]) -> list[_Frame]:
    """The places of a chain, innermost first."""
    here = _FILE.match(body)
    if here:
        path, line, column = here.groups()
        return [(path, line, column)]
    return [frame for name in re.findall(r"#(\w+)", body) for frame in _frames(definitions.get(name, ""), definitions)]
