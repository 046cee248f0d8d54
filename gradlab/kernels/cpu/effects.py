"""What a kernel does to memory and to its own run, one method each: what a sanitized kernel does otherwise."""

from collections.abc import Sequence

from gradlab.kernels.cpu import memory
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Index


class Effects:
    """Stores, atomic operations and failed assertions as an unsanitized kernel has them.

    Attributes:
        b: the emitter that code is written to.
    """

    b: Emitter

    def store(
        self, op: Operation, index: Index, p: Lane, value: Lane, mask: Lane | None, test_full: bool = True
    ) -> None:
        """A store of lanes (`memory.store`)."""
        memory.store(self.b, p, value, mask, test_full)

    def stores(self, group: Sequence[Operation]) -> None:
        """Called before stores whose elements are stored at one moment."""

    def atomic(self, op: Operation, index: Index, p: Lane, mask: Lane | None) -> Lane | None:
        """The mask of one element of an atomic operation."""
        return mask

    def after_atomic(self, op: Operation) -> None:
        """Called after an atomic operation."""

    def failed(self, op: Operation, number: int, go_on: str) -> None:
        """The block of an assertion that fails: return from the kernel.

        Args:
            number: of its message.
            go_on: the block after the assertion.
        """
        self.b.do(f"store i64 {number}, ptr %report")
        self.b.do("store i64 %program, ptr %report_program")
        self.b.do("ret i64 1")

    def scalar_operation(self, op: Operation, operands: Sequence[Lane]) -> None:
        """Called before a scalar operation is computed."""
