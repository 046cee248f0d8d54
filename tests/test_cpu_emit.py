"""What the writer of LLVM IR does so that no optimiser has to: one instruction for one value, in front of its loops."""

from gradlab.kernels.cpu.emit import Emitter, written


def lines(b):
    return [line.strip() for line in written(b.lines)]


def place(b, name):
    """Where a name is defined, and the last label before it."""
    found = lines(b)
    at = next(i for i, line in enumerate(found) if line.startswith(f"{name} ="))
    return [line for line in found[:at] if line.endswith(":")][-1:] or ["entry"], at


def test_a_value_is_computed_in_front_of_the_outermost_loop_that_knows_its_operands():
    b, found = Emitter(256), {}

    def outer(i, _):
        def inner(j, _):
            found["neither"] = b.emit("add i32 %arg0, 1")
            found["outer"] = b.emit(f"mul i32 {i}, {found['neither']}")
            found["inner"] = b.emit(f"add i32 {found['outer']}, {j}")
            return []

        b.loop(8, 1, [], inner)
        return []

    b.loop(8, 1, [], outer)
    text = lines(b)
    heads = [i for i, line in enumerate(text) if line.endswith(":")]
    first, second = heads[0], heads[1]
    assert place(b, found["neither"])[1] < first
    assert first < place(b, found["outer"])[1] < second
    assert second < place(b, found["inner"])[1]


def test_one_instruction_for_one_value_where_it_is_known():
    b = Emitter(256)
    before = b.emit("add i32 %arg0, 1")
    assert b.emit("add i32 %arg0, 1") == before
    assert b.emit("add i32 %arg0, 2") != before
    with b.branch_scope():
        assert b.emit("add i32 %arg0, 1") == before
        within = b.emit("mul i32 %arg0, 3")
        assert b.emit("mul i32 %arg0, 3") == within
    with b.branch_scope():
        other = b.emit("mul i32 %arg0, 3")
        assert other != within
    assert b.emit("mul i32 %arg0, 3") not in (within, other)


def test_what_has_effects_is_written_each_time_and_where_it_stands():
    b, found = Emitter(256), []

    def body(i, _):
        found.extend(b.emit("load i32, ptr %arg0, align 4") for _ in range(2))
        found.append(b.emit("atomicrmw add ptr %arg0, i32 1 monotonic"))
        return []

    b.loop(8, 1, [], body)
    label = place(b, found[0])[0]
    assert len(set(found)) == 3
    assert all(place(b, name)[0] == label for name in found)
    assert label != ["entry"]


def test_a_value_of_a_loop_that_is_over_is_used_in_front_of_a_later_one():
    b, found = Emitter(256), {}

    def first(i, _):
        found["made"] = b.emit(f"add i32 {i}, 1")
        return []

    def second(i, _):
        found["used"] = b.emit(f"mul i32 {found['made']}, 5")
        return []

    b.loop(8, 1, [], first)
    b.loop(8, 1, [], second)
    labels = [line for line in lines(b) if line.endswith(":")]
    # After the first loop, before the head of the second.
    assert place(b, found["used"])[0] == [labels[1]]


def test_memory_is_read_once_where_it_is_steady():
    b, found = Emitter(256), []
    read = "load i32, ptr %slot, align 4"

    def body(i, _):
        found.extend(b.read(read) for _ in range(2))
        with b.branch_scope():
            found.append(b.read("load i32, ptr %other, align 4"))
            found.append(b.read("load i32, ptr %always, align 4", anywhere=True))
        return []

    with b.steady():
        b.loop(8, 1, [], body)
    assert found[0] == found[1]
    assert place(b, found[0])[0] == ["entry"]
    assert place(b, found[3])[0] == ["entry"]
    # A branch may be there because the address is none without it.
    assert place(b, found[2])[0] != ["entry"]
    # What was read before a store is not what is there after it.
    with b.steady():
        b.loop(8, 1, [], body)
    assert found[4] not in found[:4]
    with b.steady(), b.steady(False):
        assert b.read(read) != b.read(read)
