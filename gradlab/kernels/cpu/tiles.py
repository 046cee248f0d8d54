"""Tensors while a kernel is lowered, and the loops that evaluate them.

A root (a store, a reduction, a dot's operand, a value yielded by a loop or a branch) writes a loop nest over its shape,
with one axis in the lanes of a vector, and evaluates its expression at each place.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from gradlab.kernels.cpu import costs, lanes, memory, steps, types
from gradlab.kernels.cpu.chains import Chains
from gradlab.kernels.cpu.effects import Effects
from gradlab.kernels.cpu.elementwise import RULES, compute
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.indexing import RELABELLED
from gradlab.kernels.cpu.lanes import Lane, Pointer, Ramp, Uniform, Vector, registers
from gradlab.kernels.cpu.masks import version_loops
from gradlab.kernels.cpu.ttir import Function, Operation, Type
from gradlab.kernels.cpu.values import Affine, Buffer, Index, Lazy, NotLowered, Position, Value, contiguous, position

# Bytes of buffers on the stack; others are in the thread's scratch memory.
STACK = 2**18


class Tiles(Effects):
    """The values of a kernel by SSA name, and the loops that evaluate them.

    Attributes:
        b: the emitter.
        env: the value of each name defined so far.
        types, definitions, users: type, operation and users of each name.
        later: for each block being lowered, the operations after the current one.
    """

    def __init__(self, b: Emitter, function: Function) -> None:
        self.b = b
        self.env: dict[str, Value] = {}
        self.types: dict[str, Type] = {}
        self.definitions: dict[str, Operation] = {}
        self.users: dict[str, list[Operation]] = {}
        self.later: list[Sequence[Operation]] = []
        self._chains = Chains(self.users)
        # Pending loads: not in memory yet, so a store may still change what they read.
        self.pending: set[str] = set()
        # Masks that hold everywhere in the loops being written.
        self.holding: frozenset[str] = frozenset()
        # Masks that hold in all lanes of a place.
        self.held: frozenset[tuple[str, Index]] = frozenset()
        # Loop-carried buffers, which an operation may overwrite.
        self.owned: set[str] = set()
        # The operation being lowered, for error messages.
        self.at: Operation | None = None
        self.stack = 0
        self.scratch = 0
        self.messages: list[tuple[str, str]] = []
        self._memo: dict[tuple[str, Index], Lane] = {}
        self.learn(function)

    def learn(self, function: Function) -> None:
        """Note types, definitions and users of a function's names."""
        for block in function.blocks:
            self._learn_block(block)

    def _learn_block(self, block) -> None:
        self.types.update(block.arguments)
        for op in block.operations:
            for name, kind in zip(op.results, op.result_types, strict=True):
                self.types[name] = kind
                self.definitions[name] = op
            for name in op.operands:
                self.users.setdefault(name, []).append(op)
            for region in op.regions:
                for inner in region:
                    self._learn_block(inner)

    def message(self, op: Operation, text: str) -> int:
        """The number of a message that the kernel may report."""
        raise NotImplementedError

    def inline(self, op: Operation) -> list[Value]:
        """The results of a call, whose callee is inlined here."""
        raise NotImplementedError

    # Evaluation.

    def scalar(self, name: str) -> Lane:
        """The value of a scalar name."""
        value = self.env[name]
        if isinstance(value, (Lazy, Buffer, Affine)):
            raise AssertionError(f"{name} is a tensor")
        return value

    def lane(self, name: str, index: Index) -> Lane:
        """A tensor's lanes at a place."""
        value = self.env[name]
        if not isinstance(value, (Lazy, Buffer, Affine)):
            return value
        if name in self.holding or (name, index) in self.held:
            return lanes.known(1, "i1")
        key = (name, index)
        found = self._memo.get(key)
        if found is None:
            if isinstance(value, Buffer):
                found = memory.load(self.b, self.place(value, index), None, None)
            elif isinstance(value, Lazy):
                found = self._evaluate(value, index)
            else:
                start = self.lane(value.start, index)
                move = lanes.moved if types.is_pointer(start.element) else _plus
                found = move(self.b, start, value.offset)
            self._memo[key] = found
        return found

    def forget(self) -> None:
        """Drop the cached lanes: the place changes."""
        self._memo = {}

    def _evaluate(self, value: Lazy, index: Index) -> Lane:
        op = value.op
        shaped = RELABELLED.get(op.name)
        if shaped is not None:
            return shaped(self, op, index, value.result)
        operands = [self.lane(name, index) for name in op.operands]
        if op.name == "tt.load":
            return self.load(op, operands)
        if op.name not in RULES:
            raise NotLowered(op)
        try:
            return compute(self.b, op, operands)
        except NotImplementedError as error:
            raise NotLowered(op, str(error)) from None

    def load(self, op: Operation, operands: list[Lane]) -> Lane:
        """A load on lanes: pointer, mask, other."""
        p, mask, other = (*operands, None, None)[:3]
        assert p is not None
        return memory.load(self.b, p, mask, other)

    # Buffers.

    def buffer(self, shape: tuple[int, ...], element: str, strides: tuple[int, ...] | None = None) -> Buffer:
        """Memory for a tensor, row-major unless strides are given."""
        strides = contiguous(shape) if strides is None else strides
        count = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        taken = -(-count * types.size(element) // 64) * 64
        if self.stack + taken <= STACK:
            self.stack += taken
            base = self.b.slot(count, element)
        else:
            base = self.b.name()
            self.b.slots.append(f"  {base} = getelementptr i8, ptr %scratch, i64 {self.scratch}")
            self.scratch += taken
        return Buffer(base, shape, strides, element)

    def read(self, buffer: Buffer, index: Index) -> Lane:
        """A buffer's lanes at a place, as they are now."""
        with self.b.steady(False):
            return memory.load(self.b, self.place(buffer, index), None, None)

    def write(self, buffer: Buffer, index: Index, value: Lane) -> None:
        """Store lanes into a buffer; a scalar goes to one place."""
        place = self.place(buffer, index)
        if lanes.is_scalar(place):
            with self.b.lanes(0):
                memory.store(self.b, place, value, None)
        else:
            memory.store(self.b, place, value, None)

    def place(self, buffer: Buffer, index: Index) -> Pointer:
        """The address of a buffer's lanes at a place."""
        offset, step = lanes.known(0, "i64"), 0
        for place, stride, size in zip(index, buffer.strides, buffer.shape, strict=True):
            if place is None or size == 1:
                continue
            part = lanes.multiply(self.b, self.wide(place), lanes.known(stride, "i64"))
            offset = lanes.add(self.b, offset, part)
            if place.lanes and self.b.width:
                step = stride
        base = buffer.base
        if offset.known != 0:
            kind = types.in_memory(buffer.element)
            with self.b.lanes(0):
                base = self.b.emit(f"getelementptr inbounds {kind}, ptr {base}, i64 {offset.ssa}")
        ramp = Ramp(lanes.known(0, "i64"), step, "i64") if step else None
        return Pointer(base, ramp, "*" + buffer.element)

    def wide(self, place: Position) -> Uniform:
        """A position as an i64."""
        if place.known is not None:
            return lanes.known(place.known, "i64")
        with self.b.lanes(0):
            return Uniform(self.b.emit(f"zext nneg i32 {place.ssa} to i64"), "i64")

    def materialize(self, name: str, buffer: Buffer | None = None) -> Buffer:
        """Evaluate a tensor into memory."""
        kind = self.types[name]
        buffer = buffer or self.buffer(kind.shape, kind.element)
        # A tensor that loads nothing has no preferred axis.
        along = buffer.strides.index(1) if 1 in buffer.strides and not self.loads(name) else None
        self.fill([(buffer, name)], along)
        return buffer

    def fill(
        self,
        pairs: Sequence[tuple[Buffer, str]],
        along: int | None = None,
        cast: Callable[[Lane, str, str], Lane] | None = None,
    ) -> None:
        """Evaluate tensors of one shape into memory in one loop nest; the loads of a place come before its stores."""
        shape = self.types[pairs[0][1]].shape
        along = self.along(shape, [name for _, name in pairs]) if along is None else along
        width = self.width(shape, along, [name for _, name in pairs])
        loose = any(step is None for _, name in pairs for step in self._load_steps(name, shape, along))

        def body(index: Index) -> None:
            found = []
            for buffer, name in pairs:
                value = self.lane(name, index)
                element = self.types[name].element
                found.append(value if cast is None else cast(value, element, buffer.element))
            for (buffer, _), value in zip(pairs, found, strict=True):
                self.write(buffer, index, value)

        version_loops(
            self, [name for _, name in pairs], lambda: self.nest(shape, along, width, body, loose, steady=True)
        )

    # Loops.

    def nest(
        self,
        shape: Sequence[int],
        along: int,
        width: int,
        body: Callable[[Index], None],
        outermost: bool = False,
        skip: int | None = None,
        steady: bool = False,
    ) -> None:
        """Loops over every axis, `along` in steps of `width` lanes and innermost; `body` writes one place.

        Args:
            outermost: the axis of the lanes is the outermost loop, so that tests made once a vector (whether addresses
                are contiguous) are not repeated for each row.
            skip: an axis that the body loops over itself.
            steady: the body does not write what it reads, or only at the place where it was read.
        """
        axes = [axis for axis in range(len(shape)) if axis not in (along, skip)]
        if along >= 0 and along != skip:
            axes = [along, *axes] if outermost else [*axes, along]
        with self.b.steady(steady), self.b.moving_across(outermost):
            self._nest(axes, shape, along, width, body, [None] * len(shape))

    def _nest(
        self,
        axes: list[int],
        shape: Sequence[int],
        along: int,
        width: int,
        body: Callable[[Index], None],
        index: list[Position | None],
    ) -> None:
        if not axes:
            memo, self._memo = self._memo, {}
            with self.b.lanes(width):
                body(tuple(index))
            self._memo = memo
            return
        axis, rest = axes[0], axes[1:]
        if shape[axis] == 1:
            self._nest(rest, shape, along, width, body, index)
            return
        laned = axis == along and width > 0

        def one(i: str, _: list[str]) -> list[str]:
            here = list(index)
            here[axis] = position(i, laned)
            self._nest(rest, shape, along, width, body, here)
            return []

        self.b.loop(shape[axis], width if laned else 1, [], one)

    def along(self, shape: tuple[int, ...], names: Iterable[str], pointers: Iterable[str] = ()) -> int:
        """The axis for the lanes: one along which addresses step by 1, else one of unknown step, else the last."""
        axes = [axis for axis in range(len(shape)) if shape[axis] > 1]
        if not axes:
            return len(shape) - 1
        wanted = list(pointers)
        for name in names:
            wanted += [op.operands[0] for op in self.loads(name) if op.result_types[0].shape == shape]
        score = dict.fromkeys(axes, 0)
        for name, axis in itertools.product(wanted, axes):
            step = self.step(name, axis)
            score[axis] += 4 if step == 1 else 1 if step is None else 0
        return max(axes, key=lambda axis: (score[axis], axis))

    def width(self, shape: tuple[int, ...], along: int, names: Iterable[str]) -> int:
        """Number of lanes for a nest that evaluates these tensors; 0 for scalar code."""
        if not shape:
            return 0
        widest = 32
        for name in names:
            for element in (self.types[name].element, *(op.result_types[0].element for op in self.loads(name))):
                widest = max(widest, 64 if types.is_pointer(element) else types.bits(element))
        lanes_ = min(self.b.vector_bits // widest, shape[along])
        return lanes_ if lanes_ > 1 else 0

    def _load_steps(self, name: str, shape: tuple[int, ...], axis: int) -> Iterator[int | None]:
        for op in self.loads(name):
            if op.result_types[0].shape == shape:
                yield self.step(op.operands[0], axis)

    def loads(self, name: str) -> list[Operation]:
        """The loads that evaluating a lazy tensor performs."""
        found: list[Operation] = []
        seen: set[str] = set()
        todo = [name]
        while todo:
            one = todo.pop()
            value = self.env.get(one)
            if one in seen or not isinstance(value, (Lazy, Affine)):
                continue
            seen.add(one)
            if isinstance(value, Affine):
                todo.append(value.start)
                continue
            if value.op.name == "tt.load":
                found.append(value.op)
            todo += value.op.operands
        return found

    def step(self, name: str, axis: int) -> int | None:
        """The step of a tensor along an axis (`steps.step`)."""
        return steps.step(self.env, name, axis)

    # When tensors are evaluated.

    def define(self, op: Operation) -> None:
        """Note an operation's tensors as lazy; evaluate those at once that are expensive and used repeatedly."""
        long = self._chains.long(self.env, op)
        for i, name in enumerate(op.results):
            self.env[name] = Lazy(op, i)
            if op.name == "tt.load":
                self.pending.add(name)
            kind = self.types[name]
            users = self.users.get(name, ())
            if kind.elements == 1 or not users or types.is_pointer(kind.element):
                continue
            again = any(u.name in ("tt.expand_dims", "tt.broadcast") or u.block is not op.block for u in users)
            twice = op.name in costs.TRANSCENDENTAL and len(users) > 1 and any(u.name == "tt.reduce" for u in users)
            # A row or a column of indices, such as a pixel's place in an image, which several loads use.
            edge = 1 in kind.shape and op.name.startswith(costs.DIVISIONS) and len(users) > 1
            chained = long and self._chains.wanted_twice(name)
            if (again and self.expensive(name)) or twice or edge or chained:
                self.env[name] = self.materialize(name)
                self.pending.discard(name)

    def expensive(self, name: str) -> bool:
        """Whether computing a tensor takes longer than reading it from memory."""
        return costs.expensive(self.env, name)

    def transcendental(self, name: str) -> bool:
        """Whether computing a tensor takes a transcendental function."""
        return costs.transcendental(self.env, name)

    def settle(self, coming: Iterable[Operation]) -> None:
        """Before memory changes: evaluate the pending loads that `coming` operations, or later ones, use."""
        if not self.pending:
            return
        needed: set[str] = set()
        seen: set[str] = set()
        for op in itertools.chain(coming, *self.later):
            self._needs(op, needed, seen)
        for name in sorted(needed):
            self.env[name] = self.materialize(name)
        self.pending.clear()

    def _needs(self, op: Operation, needed: set[str], seen: set[str]) -> None:
        todo = list(op.operands)
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            value = self.env.get(name)
            if isinstance(value, Affine):
                todo.append(value.start)
            elif isinstance(value, Lazy):
                if name in self.pending:
                    needed.add(name)
                else:
                    todo += value.op.operands
        for region in op.regions:
            for block in region:
                for inner in block.operations:
                    self._needs(inner, needed, seen)


def _plus(b: Emitter, x: Lane, y: Uniform) -> Lane:
    if isinstance(x, Uniform):
        return lanes.add(b, x, y)
    if isinstance(x, Ramp):
        return Ramp(lanes.add(b, x.base, y), x.step, x.element)
    return Vector(b.op("add", x.element, registers(b, x), registers(b, y)), x.element)
