"""A cubin, which is an ELF file of 64 bits: the machine code in it."""

import struct

# Where the header says where the table of sections is, how long an entry is, how many there are, and which names them.
_TABLE, _ENTRIES = (40, "<Q"), (58, "<HHH")
_SECTION = "<IIQQQQ"
_PROGRAM, _EXECUTABLE = 1, 4


def instructions(cubin: bytes) -> bytes:
    """The code of every function in it, one after another.

    Raises:
        ValueError: it is no such file, or has no code.
    """
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("cubin: no ELF file of 64 bits")
    (table,) = struct.unpack_from(_TABLE[1], cubin, _TABLE[0])
    size, count, _ = struct.unpack_from(_ENTRIES[1], cubin, _ENTRIES[0])
    found = []
    for i in range(count):
        _, kind, flags, _, begin, length = struct.unpack_from(_SECTION, cubin, table + i * size)
        if kind == _PROGRAM and flags & _EXECUTABLE:
            found.append(cubin[begin : begin + length])
    if not found:
        raise ValueError("cubin: no section of code")
    return b"".join(found)
