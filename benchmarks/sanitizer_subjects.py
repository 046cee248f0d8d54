"""Kernels of the suite with a planted fault each, and right ones: `python sanitizer_subjects.py NAME` launches one."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests import test_known_faults_torch as known
from tests import test_sanitize_bounds_torch as bounds
from tests import test_sanitize_operations_torch as operations
from tests import test_sanitize_shadow_torch as shadow
from tests import test_sanitize_tutorials_torch as tutorials


@dataclass(frozen=True)
class Subject:
    """Launches of a kernel.

    Attributes:
        kind: what is wrong, in the words of `docs/sanitize.md`; "" where nothing is.
        kernel: on one of whose lines the fault stands.
        call: launches it.
        mark: of those lines.
    """

    kind: str
    kernel: Any
    call: Callable[[], Any]
    mark: str = "# fault"


SUBJECTS: dict[str, Subject] = {}
OUT, FRESH, NEVER = "out of bounds", "uninitialised load", "result never written"
RACE, TWICE, OVERFLOW = "race", "two values for one element", "integer overflow"
ASSERTION, DIVISION, SHIFT, BORN = "failed assertion", "division by zero", "shift past the width", "non-finite value"


def subject(
    name: str,
    kind: str,
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    mark: str = "# fault",
    line_of: Any = None,
    **constants: Any,
) -> None:
    """Keep one launch; arguments that are functions are called for it. The fault is in the kernel, or in `line_of`."""

    def call() -> None:
        kernel[grid](*[a() if callable(a) else a for a in args], **constants)

    assert name not in SUBJECTS
    SUBJECTS[name] = Subject(kind, line_of or kernel, call, mark)


def ones(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.ones(*shape)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[], torch.Tensor]:
    return lambda: torch.zeros(*shape, dtype=dtype)


def fresh(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.empty(*shape)


def count(n: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.arange(n, dtype=torch.int32)


def table(*sizes: int) -> Callable[[], torch.Tensor]:
    """Addresses of tensors of so many elements, which live on."""

    def made() -> torch.Tensor:
        tensors = [torch.zeros(n) for n in sizes]
        KEPT.extend(tensors)
        return torch.tensor([t.data_ptr() for t in tensors])

    return made


KEPT: list[torch.Tensor] = []
HALVES = {"BM": 16, "BN": 16, "BK": 32}

subject("one past the end", OUT, bounds.off_by_one, (4,), ones(1000), zeros(1000), 1000, BLOCK=256)
subject("store without a mask", OUT, bounds.unmasked_store, (4,), ones(1000), zeros(1000), 1000, BLOCK=256)
subject("before the first", OUT, bounds.one_before, (1,), ones(1000), zeros(1000), 256, BLOCK=256)
subject("rows too long", OUT, bounds.rows, (1,), lambda: torch.ones(4, 16)[:3, :6], zeros(3, 6), 3, 6, 16, BM=4, BN=8)
subject("reduction in a loop", OUT, bounds.row_sum, (3,), ones(3, 50), zeros(3), 50, BLOCK=16)
subject(
    "dot, K not masked", OUT, bounds.product, (2, 2), ones(20, 40), ones(40, 24), zeros(20, 24), 20, 24, 40, **HALVES
)
subject("pointer moved by a loop", OUT, bounds.walking, (1,), ones(256), zeros(64), 256, BLOCK=64)
subject("block pointer", OUT, bounds.block_pointers, (2,), ones(5, 12), zeros(5, 12), 5, 12, BM=4, BN=16)
subject("one scalar", OUT, bounds.one_scalar, (1,), ones(1000), zeros(1000), 1000)
KINDS = lambda: torch.tensor([0, 1, 2, 3, 2])
subject("atomic add", OUT, bounds.counting, (1,), KINDS, zeros(3, dtype=torch.int32), 5, BLOCK=8)
subject("compare and swap", OUT, bounds.swapping, (1,), zeros(1, dtype=torch.int32), 1)
ROWS = lambda: torch.tensor([3, 7, 0])
subject("gathered row", OUT, bounds.embedding, (3,), ROWS, ones(7, 10), zeros(3, 10), 10, BLOCK=16)
subject("wrong strides", OUT, bounds.transposed, (1,), ones(5, 6), zeros(6, 5), 5, 6, BM=8, BN=8)
CALLED = (bounds.calling, (1,), ones(20), zeros(20), 20)
subject("in an inlined callee", OUT, *CALLED, line_of=bounds.fetch, BLOCK=32)
SIZES = lambda: torch.tensor([7, 32, 64])
subject("table of addresses", OUT, bounds.table, (3,), table(7, 30, 64), SIZES, BLOCK=64)
subject("loop of unknown length", OUT, bounds.searching, (1,), zeros(8), zeros(1))
subject("behind a branch", OUT, bounds.chosen, (1,), ones(10), ones(10), zeros(16), 6, 10, BLOCK=16)
subject(
    "element of a view with gaps",
    OUT,
    bounds.off_by_one,
    (1,),
    lambda: torch.ones(1000)[::2],
    zeros(400),
    400,
    BLOCK=512,
)
EXPANDED = lambda: torch.ones(()).expand(100)
subject("expanded gradient", OUT, known.relu_backward, (1,), EXPANDED, ones(100), zeros(100), 100, BLOCK=128)
subject("block that is not whole", OUT, known.whole_blocks, (3,), ones(40), zeros(40), BLOCK=16, mark="# load")
Q = lambda: torch.ones(8, 48)[:, :16]
subject("another's strides", OUT, known.key_gradient, (1,), Q, zeros(8, 16), 8, 16, 48, BN=8, BD=16)

subject("accumulator never set", FRESH, shadow.adding, (4,), ones(1000), fresh(1000), 1000, BLOCK=256)
subject("dot onto fresh memory", FRESH, shadow.product, (1,), ones(16, 64), ones(64, 16), fresh(16, 16), 64, **HALVES)
subject("fresh memory in a loop", FRESH, shadow.walking, (1,), fresh(256), zeros(64), 256, BLOCK=64)


def too_few() -> None:
    y = torch.empty(1000)
    shadow.filling[(3,)](y, 1000, 1.0, BLOCK=256)
    y.sum()


SUBJECTS["too few programs"] = Subject(NEVER, shadow.filling, too_few)

subject(
    "tiles that overlap", RACE, shadow.overlapping, (4,), lambda: torch.arange(1000.0), fresh(1000), 1000, BLOCK=256
)
subject("one total, no atomics", RACE, shadow.one_total, (4,), ones(1000), fresh(1), 1000, BLOCK=256)
subject("load, then another's store", RACE, shadow.sliding, (4,), ones(1000), 1000, BLOCK=256, BY=1, mark="# store")
subject("store, then another's load", RACE, shadow.sliding, (4,), ones(1000), 1000, BLOCK=256, BY=-1, mark="# load")
subject("split sum", RACE, shadow.split, (2, 3), ones(3, 500), zeros(500), 500, BLOCK=256, PARTS=3, mark="# store")
INT = zeros(1, dtype=torch.int32)
subject("load beside atomics", RACE, shadow.peeking, (3,), INT, zeros(3, dtype=torch.int32))
subject("one tensor twice in a table", RACE, shadow.table, (3,), lambda: table(100)().repeat(3), 100, BLOCK=128)
subject("two lanes, one element", TWICE, shadow.halves, (1,), lambda: torch.arange(100.0), fresh(50), 100, BLOCK=128)
M3 = lambda: torch.arange(60.0).reshape(3, 20)
subject("two rows, one element", TWICE, shadow.squashed, (1,), M3, fresh(20), 3, 20, BM=4, BN=32)

subject("offset of lanes wraps", OVERFLOW, operations.strided, (1,), ones(1024), zeros(64), 64, 2**30, BLOCK=64)
subject("offset of a row wraps", OVERFLOW, operations.far_row, (1,), ones(64), zeros(64), 2**16, 2**16, BLOCK=64)
subject("size of a mask wraps", OVERFLOW, operations.in_all, (1,), ones(64), zeros(64), 2**16, 2**15, BLOCK=64)
MINUS = lambda: torch.linspace(-1, 1, 100)
subject("assertion of lanes", ASSERTION, operations.asserting, (4,), MINUS, zeros(100), 100, BLOCK=32)
subject("assertion of a scalar", ASSERTION, operations.asserting_once, (2,), 7)
I100 = zeros(100, dtype=torch.int32)
subject("one divisor", DIVISION, operations.rows_of, (2,), zeros(1), I100, 100, 0, BLOCK=64)
subject("divisors of lanes", DIVISION, operations.quotients, (1,), count(20), count(20), I100, 20, BLOCK=32)
subject("one shift", SHIFT, operations.shifting, (1,), count(20), I100, 20, 32, BLOCK=32)
subject("shifts of lanes", SHIFT, operations.shifting_each, (1,), lambda: 2 * count(20)(), I100, 20, BLOCK=32)
subject("logarithm of 0", BORN, operations.logarithm, (1,), zeros(20), zeros(20), 20, BLOCK=32)
LOW = lambda: torch.zeros(3, 20) - 200
subject("maximum from 0", BORN, known.log_sum_exp, (3,), LOW, zeros(3), 20, 0.0, BLOCK=16)

GAPS = lambda: torch.ones(4, 16)[:, :8]
subject("rows of a view with gaps", "", bounds.rows, (1,), GAPS, zeros(4, 8), 4, 8, 16, BM=4, BN=8)
subject("whole dot", "", bounds.product, (2, 2), ones(20, 64), ones(64, 24), fresh(20, 24), 20, 24, 64, **HALVES)
subject("whole block pointer", "", bounds.block_pointers, (2,), ones(8, 16), fresh(8, 16), 8, 16, BM=4, BN=16)
subject("right table of addresses", "", bounds.table, (3,), table(7, 32, 64), SIZES, BLOCK=64)
RIGHT = lambda: torch.tensor([3, 6, 0])
subject("right gathered rows", "", bounds.embedding, (3,), RIGHT, ones(7, 10), fresh(3, 10), 10, BLOCK=16)
subject("other branch", "", bounds.chosen, (1,), ones(10), ones(10), fresh(16), 4, 10, BLOCK=16)
subject("slide in one program", "", shadow.sliding, (1,), ones(1000), 1000, BLOCK=1024, BY=1)
subject("lock", "", shadow.locked, (5,), INT, zeros(1), ones(5))
subject("last program adds up", "", shadow.last_one, (4,), ones(4), fresh(4), INT, zeros(1), P=4)
subject("division behind a choice", "", operations.chosen_quotients, (1,), count(20), count(20), I100, 20, BLOCK=32)
subject("hash that wraps", "", operations.mixing, (1,), ones(64), fresh(64), 2**31 - 5, 64, BLOCK=64)
subject("softmax", "", tutorials.softmax_rows, (5,), fresh(37, 100), ones(37, 100), 100, 100, 37, 100, BLOCK=128)
MATRICES = (ones(70, 50), ones(50, 90), fresh(70, 90), 70, 90, 50)
subject("matmul in groups", "", tutorials.grouped_matmul, (30,), *MATRICES, **HALVES, G=2)
LOCKED = (ones(20, 50), ones(20, 50), fresh(4, 50), zeros(8, dtype=torch.int32), 50)
subject("layer norm behind locks", "", tutorials.weight_gradient, (20,), *LOCKED, GROUP=4, BLOCK=64)
subject("dropout", "", tutorials.dropout, (4,), ones(1000), fresh(1000), 1000, 0.3, 2**31 - 7, BLOCK=256)
subject("atomic sum", "", tutorials.split_sum, (4,), ones(1000), zeros(1), 1000, BLOCK=256)
X = lambda: torch.arange(-50.0, 950.0)
subject("places by atomics", "", tutorials.compacted, (4,), X, fresh(1000), INT, 1000, BLOCK=256)

LARGE = (fresh(4096, 1000), ones(4096, 1000), 1000, 1000, 4096, 1000)
subject("large softmax, 4096 x 1000", "", tutorials.softmax_rows, (4096,), *LARGE, BLOCK=1024)
SQUARE = (ones(512, 512), ones(512, 512), fresh(512, 512), 512, 512, 512)
subject("large matmul, 512^3", "", tutorials.grouped_matmul, (64,), *SQUARE, BM=64, BN=64, BK=64, G=4)
MANY = lambda: torch.arange(20000) % 1000
subject(
    "large embedding, 20,000 rows of 100",
    "",
    bounds.embedding,
    (20000,),
    MANY,
    ones(1000, 100),
    fresh(20000, 100),
    100,
    BLOCK=128,
)
subject(
    "large table, 1,000 tensors",
    "",
    bounds.table,
    (1000,),
    table(*[512] * 1000),
    lambda: torch.full((1000,), 512),
    BLOCK=512,
)

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    SUBJECTS[sys.argv[1]].call()
