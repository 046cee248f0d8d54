"""`tl.device_assert` and `tl.device_print`: reports from a program to the host.

The report is memory of the launch: word 0 is the number of the message, word 1 the program that failed; word 8 is the
address of the print callback, `void(message, program, kind, bits, element)`.
"""

from gradlab.kernels.cpu import floats, lanes, memory, types
from gradlab.kernels.cpu.lanes import Lane, registers
from gradlab.kernels.cpu.tiles import Tiles
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Index

# Kinds of printed values.
KINDS = ("int", "float", "pointer", "unsigned")


def check(tiles: Tiles, op: Operation) -> None:
    """`tt.assert`: return from the kernel if the condition fails in any lane."""
    b = tiles.b
    number = tiles.message(op, str(op.attributes.get("message", "")))
    shape = op.operand_types[0].shape
    along = tiles.along(shape, op.operands) if shape else -1
    width = tiles.width(shape, along, op.operands) if shape else 0

    def body(index: Index) -> None:
        value = tiles.lane(op.operands[0], index)
        with b.lanes(0 if lanes.is_scalar(value) else b.width):
            holds = memory.every_lane(b, registers(b, value))
        go_on, fail = b.label(), b.label()
        b.branch(holds, go_on, fail)
        b.start(fail)
        tiles.failed(op, number, go_on)
        b.start(go_on)

    tiles.nest(shape, along, width, body)


def print_values(tiles: Tiles, op: Operation) -> None:
    """`tt.print`: every element of every operand, one after another."""
    b = tiles.b
    number = tiles.message(op, str(op.attributes.get("prefix", op.attributes.get("message", ""))))
    signs = op.attributes.get("isSigned") or []
    printer = b.emit("load ptr, ptr %report_printer")
    for place, (name, kind) in enumerate(zip(op.operands, op.operand_types, strict=True)):
        count = [0]
        signed = not signs or bool(signs[place])

        def body(
            index: Index,
            name: str = name,
            shape: tuple[int, ...] = kind.shape,
            signed: bool = signed,
            count: list[int] = count,
        ) -> None:
            value = tiles.lane(name, index)
            what, word = _word(tiles, value, signed)
            element = lanes.known(0, "i64")
            size = 1
            for here, n in reversed(list(zip(index, shape, strict=True))):
                if here is not None:
                    element = lanes.add(b, element, lanes.multiply(b, tiles.wide(here), lanes.known(size, "i64")))
                size *= n
            b.do(f"call void {printer}(i64 {number}, i64 %program, i64 {what}, i64 {word}, i64 {element.ssa})")

        tiles.nest(kind.shape, -1, 0, body)
    if not op.operands:
        b.do(f"call void {printer}(i64 {number}, i64 %program, i64 -1, i64 0, i64 0)")


def _word(tiles: Tiles, value: Lane, signed: bool) -> tuple[int, str]:
    b, element = tiles.b, value.element
    ssa = registers(b, value)
    if types.is_pointer(element):
        return KINDS.index("pointer"), b.emit(f"ptrtoint ptr {ssa} to i64")
    if types.is_float(element):
        wide = floats.converted(b, element, "f64", ssa)
        return KINDS.index("float"), b.bitcast("f64", "i64", wide)
    kind = "int" if signed and element != "i1" else "unsigned"
    return KINDS.index(kind), b.convert("sext" if kind == "int" else "zext", element, "i64", ssa)
