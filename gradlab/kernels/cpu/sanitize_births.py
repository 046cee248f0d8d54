"""Where what a kernel stores has stopped being finite: the operation whose operands were, looked at on request.

Only lanes that are stored count: what is computed for others may be anything. A value that was not finite when it was
loaded is born elsewhere, and a sum or a product of tiles is looked at as a whole.
"""

from gradlab.kernels.cpu import lanes, memory, types
from gradlab.kernels.cpu import sanitize_layout as layout
from gradlab.kernels.cpu.elementwise import RULES
from gradlab.kernels.cpu.indexing import SOURCES
from gradlab.kernels.cpu.lanes import Lane, registers
from gradlab.kernels.cpu.sanitize_lower import Sanitized
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Index

# The bits of an exponent, all of which are set in infinities and NaNs.
_EXPONENTS = {"f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F800000, "f64": 0x7FF0000000000000}
_GIVEN = {"tt.load", "arith.constant"}


class Births(Sanitized):
    """A sanitized kernel that looks at every float that it stores, too."""

    def store(
        self, op: Operation, index: Index, p: Lane, value: Lane, mask: Lane | None, test_full: bool = True
    ) -> None:
        """A store within bounds, of values whose birth is noted."""
        self._births(op.operands[1], index, mask)
        super().store(op, index, p, value, mask, test_full)

    def _births(self, name: str, index: Index, mask: Lane | None) -> None:
        b = self.b
        todo, seen = [name], set()
        while todo:
            one = todo.pop()
            if one in seen or self.types[one].element not in _EXPONENTS:
                continue
            seen.add(one)
            op = self._maker(one)
            if op is None or op.name in _GIVEN:
                continue
            wrong = self._not_finite(self.lane(one, index))
            if op.name in RULES and op.result == one and all(operand in self.env for operand in op.operands):
                for operand in op.operands:
                    if self.types[operand].element in _EXPONENTS:
                        other = self._not_finite(self.lane(operand, index))
                        wrong = b.op("and", "i1", wrong, b.op("xor", "i1", other, b.constant(1, "i1")))
                todo += op.operands
            if mask is not None:
                wrong = b.op("and", "i1", wrong, registers(b, mask))
            text = f"{op.name} gives what is not finite, and what it takes is"
            self._note_if(memory.any_lane(b, wrong), self._site(op, layout.OPERATION, text), layout.BORN)

    def _maker(self, name: str) -> Operation | None:
        """The operation that a tensor's elements come of."""
        op = self.definitions.get(name)
        while op is not None and op.name in SOURCES and op.operands:
            op = self.definitions.get(op.operands[0])
        return op

    def _not_finite(self, value: Lane) -> str:
        """Whether a float is an infinity or NaN, for each lane."""
        b, t = self.b, value.element
        with b.lanes(0 if lanes.is_scalar(value) else b.width):
            word = f"i{types.bits(t)}"
            bits = b.bitcast(t, word, registers(b, value))
            exponent = b.constant(_EXPONENTS[t], word)
            found = b.compare("eq", word, b.op("and", word, bits, exponent), exponent)
        return b.splat("i1", found) if lanes.is_scalar(value) else found
