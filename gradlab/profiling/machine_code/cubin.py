"""Extracts the machine code of a cubin, a 64-bit ELF file."""

import struct

# Header fields: offset of the section table; size and number of entries, index of the names.
_TABLE, _ENTRIES = (40, "<Q"), (58, "<HHH")
_SECTION = "<IIQQQQ"
_PROGRAM, _EXECUTABLE = 1, 4


def instructions(cubin: bytes) -> bytes:
    """The code of every function in it, one after another.

    Raises:
        ValueError: it is no such file, or has no code.
    """
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("cubin: data is no ELF file of 64 bits, wanted a cubin")
    (table,) = struct.unpack_from(_TABLE[1], cubin, _TABLE[0])
    size, count, _ = struct.unpack_from(_ENTRIES[1], cubin, _ENTRIES[0])
    found = []
    for i in range(count):
        _, kind, flags, _, begin, length = struct.unpack_from(_SECTION, cubin, table + i * size)
        if kind == _PROGRAM and flags & _EXECUTABLE:
            found.append(cubin[begin : begin + length])
    if not found:
        raise ValueError("cubin: data has no section of code, wanted a cubin")
    return b"".join(found)
