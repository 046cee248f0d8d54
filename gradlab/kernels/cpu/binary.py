"""A compiled kernel as a file: object code, the metadata that a launch needs, and a checksum over both.

The object comes first, so that `objdump` reads the file as it is. The checksum also covers the kernel's cache key and
the
machine: a file that is truncated, altered, or made for another kernel or CPU is refused.
"""

import dataclasses
import hashlib
import json
import struct
from typing import Any

from gradlab.kernels.cpu.machine import Machine, host

# Trailer: bytes of JSON before it, the kernel's name in Triton's cache, a checksum, a magic number.
_END = struct.Struct("<Q32s32s16s")
_KIND = b"gradlab-cpu-0001"


class Broken(ValueError):
    """The file is damaged, incomplete, or not a kernel compiled for this CPU."""


@dataclasses.dataclass(frozen=True)
class Binary:
    """One kernel's machine code.

    Attributes:
        name: the kernel's.
        entry: the function that runs programs `begin` to `end - 1`.
        arguments: name and element type of each argument, in the order of their slots: `("x_ptr", "*f32")`.
        scratch: bytes of memory that a thread needs while it runs programs.
        messages: text of each assertion, or prefix of each print, with its place in the source.
        stored: which arguments are pointers that the kernel stores through.
        ordered: whether programs have to run one after another: they print, or update memory that they share.
        code: the object file.
        sites: of a sanitized kernel, where each of its accesses stands (`sanitize_lower.Site`).
    """

    name: str
    entry: str
    arguments: tuple[tuple[str, str], ...]
    scratch: int
    messages: tuple[tuple[str, str], ...]
    stored: tuple[int, ...]
    ordered: bool
    code: bytes
    sites: tuple[Any, ...] = ()

    def seal(self, owner: str, machine: Machine | None = None) -> bytes:
        """The bytes of the file, for a kernel whose name in Triton's cache is `owner`, 64 hexadecimal digits."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "code"}
        body = self.code + (text := json.dumps(facts).encode())
        return body + _END.pack(len(text), bytes.fromhex(owner), _checksum(body, owner, machine or host()), _KIND)

    @classmethod
    def unseal(cls, data: bytes, owner: str | None = None, machine: Machine | None = None) -> "Binary":
        """The kernel that `seal` wrote.

        Raises:
            Broken: the file is truncated or altered, made for another machine or by another version of the compiler,
                or for another kernel than `owner`.
        """
        if len(data) < _END.size:
            raise Broken(f"the file has {len(data)} bytes")
        length, name, checksum, kind = _END.unpack(data[-_END.size :])
        if kind != _KIND:
            raise Broken("the file does not end as a compiled kernel does")
        body = data[: -_END.size]
        if length > len(body) or checksum != _checksum(body, name.hex(), machine or host()):
            raise Broken("the file is damaged, or was compiled for another CPU")
        if owner is not None and name.hex() != owner:
            raise Broken("the file holds another kernel")
        facts = json.loads(body[len(body) - length :])
        return cls.made(body[: len(body) - length], **facts)

    @classmethod
    def made(cls, code: bytes, **facts: Any) -> "Binary":
        """A binary from attributes that went through JSON, which turns tuples into lists."""
        return cls(code=code, **{name: _tuples(value) for name, value in facts.items()})


def _checksum(body: bytes, owner: str, machine: Machine) -> bytes:
    return hashlib.sha256(body + f"{owner} {machine.key()}".encode()).digest()


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
