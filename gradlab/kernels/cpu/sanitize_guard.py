"""What a sanitized kernel calls where an access is not plainly within bounds: LLVM IR of one lane.

It gives whether the lane may go on; what it may not do, and what is wrong though it goes on, it notes in a record.
"""

from gradlab.kernels.cpu import sanitize_layout as layout

_RECORD = f"""\
define internal void @sanitize.record(ptr %state, i64 %site, i64 %kind, i64 %program, i64 %at, i64 %other, ptr %extent)
    noinline cold {{
entry:
  %place = getelementptr i64, ptr %state, i64 {layout.RECORDS}
  %records = load ptr, ptr %place
  %row = mul i64 %site, {len(layout.KINDS)}
  %number = add i64 %row, %kind
  %first = mul i64 %number, {layout.RECORD}
  %record = getelementptr i64, ptr %records, i64 %first
  %count = load i64, ptr %record
  %more = add i64 %count, 1
  store i64 %more, ptr %record
  %faults.at = getelementptr i64, ptr %state, i64 {layout.FAULTS}
  store i64 1, ptr %faults.at
  %new = icmp eq i64 %count, 0
  br i1 %new, label %fill, label %done
fill:
  %at.program = getelementptr i64, ptr %record, i64 {layout.PROGRAM}
  store i64 %program, ptr %at.program
  %at.at = getelementptr i64, ptr %record, i64 {layout.AT}
  store i64 %at, ptr %at.at
  %at.other = getelementptr i64, ptr %record, i64 {layout.OTHER}
  store i64 %other, ptr %at.other
  %at.found = getelementptr i64, ptr %record, i64 {layout.FOUND}
  store ptr %extent, ptr %at.found
  br label %done
done:
  ret void
}}"""

# The extent that an address belongs to, as the host knows it; %noted is 1 where loads of it are noted.
_FIND = f"""\
define internal ptr @sanitize.find(ptr %state, i64 %address, i64 %noted) noinline {{
entry:
  %bit = shl i64 %noted, 63
  %at = or i64 %address, %bit
  %answers.at = getelementptr i64, ptr %state, i64 {layout.ANSWERS}
  %answers = load ptr, ptr %answers.at
  %mixed = mul i64 %at, -7046029254386353131
  %number = lshr i64 %mixed, {64 - layout.ANSWER_BITS}
  %pair = shl i64 %number, 1
  %key.at = getelementptr i64, ptr %answers, i64 %pair
  %answer.at = getelementptr i64, ptr %key.at, i64 1
  %key = load i64, ptr %key.at
  %known = icmp eq i64 %key, %at
  %answer = load ptr, ptr %answer.at
  %null = icmp eq ptr %answer, null
  %asks = select i1 %known, i1 %null, i1 true
  br i1 %asks, label %ask, label %done
ask:
  %finder.at = getelementptr i64, ptr %state, i64 {layout.FIND}
  %finder = load ptr, ptr %finder.at
  %found = call i64 %finder(i64 %at)
  %extent = inttoptr i64 %found to ptr
  store i64 %at, ptr %key.at
  store ptr %extent, ptr %answer.at
  ret ptr %extent
done:
  ret ptr %answer
}}"""


def _word(extent: str, name: str, word: int, kind: str = "i64") -> str:
    return (
        f"  %at.{name} = getelementptr i64, ptr {extent}, i64 {word}\n  %{name} = load {kind}, ptr %at.{name}, align 8"
    )


def _noted(kind: int, other: str) -> str:
    given = f"ptr %state, i64 %site, i64 {kind}, i64 %program, i64 %at, i64 {other}, ptr %extent"
    return f"  call void @sanitize.record({given})"


_LANE = f"""\
define internal i1 @sanitize.lane(ptr %state, ptr %given, i64 %at, i64 %size, i64 %access, i64 %site, i64 %program,
    i64 %tick, i64 %value) noinline cold {{
entry:
  %known = icmp ne ptr %given, null
  br i1 %known, label %held, label %look
look:
  %found = call ptr @sanitize.find(ptr %state, i64 %at, i64 1)
  br label %held
held:
  %extent = phi ptr [ %given, %entry ], [ %found, %look ]
{_word("%extent", "low", layout.LOW)}
{_word("%extent", "bytes", layout.BYTES)}
  %offset = sub i64 %at, %low
  %last = sub i64 %bytes, %size
  %above = icmp sge i64 %offset, 0
  %below = icmp sle i64 %offset, %last
  %within = and i1 %above, %below
  br i1 %within, label %gaps, label %outside
outside:
  call void @sanitize.record(ptr %state, i64 %site, i64 {layout.OUTSIDE}, i64 %program, i64 %at, i64 0, ptr %extent)
  ret i1 false
gaps:
{_word("%extent", "shift", layout.SHIFT)}
  %element = lshr i64 %offset, %shift
{_word("%extent", "inside", layout.INSIDE, "ptr")}
  %dense = icmp eq ptr %inside, null
  br i1 %dense, label %shadow, label %gap
gap:
  %at.byte = getelementptr i8, ptr %inside, i64 %element
  %byte = load i8, ptr %at.byte
  %owned = icmp ne i8 %byte, 0
  br i1 %owned, label %shadow, label %outside
shadow:
{_word("%extent", "writers", layout.WRITERS, "ptr")}
  %kept = icmp ne ptr %writers, null
  br i1 %kept, label %ticks, label %fine
ticks:
{_word("%extent", "readers", layout.READERS, "ptr")}
  %reads = icmp ne ptr %readers, null
{_word("%state", "epoch", layout.EPOCH)}
{_word("%state", "floor", layout.FLOOR)}
{_word("%state", "start", layout.START)}
  %short = trunc i64 %start to i32
  %is.load = icmp eq i64 %access, {layout.LOAD}
  %is.store = icmp eq i64 %access, {layout.STORE}
  %is.atomic = icmp eq i64 %access, {layout.ATOMIC}
  %size.last = sub i64 %size, 1
  %more.elements = lshr i64 %size.last, %shift
  %end = add i64 %element, %more.elements
  br label %word
word:
  %i = phi i64 [ %element, %ticks ], [ %i.next, %word.end ]
  %at.writer = getelementptr i32, ptr %writers, i64 %i
  %writer.short = load i32, ptr %at.writer
  %writer = sext i32 %writer.short to i64
  %was.atomic = icmp slt i64 %writer, 0
  %writer.minus = sub i64 0, %writer
  %wrote = select i1 %was.atomic, i64 %writer.minus, i64 %writer
  %empty = icmp eq i64 %writer, 0
  %is.read = xor i1 %is.store, true
  %unwritten = and i1 %empty, %is.read
  br i1 %unwritten, label %note.unwritten, label %stored
note.unwritten:
{_noted(layout.UNWRITTEN, "0")}
  store i32 {layout.HOST}, ptr %at.writer
  br label %stored
stored:
  %wrote.now = icmp sgt i64 %wrote, %floor
  %wrote.before = icmp slt i64 %wrote, %start
  %wrote.other = and i1 %wrote.now, %wrote.before
  %both = and i1 %is.atomic, %was.atomic
  %plain = xor i1 %both, true
  %race.stored = and i1 %wrote.other, %plain
  br i1 %race.stored, label %note.stored, label %loaded
note.stored:
{_noted(layout.STORED, "%wrote")}
  br label %loaded
loaded:
  br i1 %reads, label %reader, label %update
reader:
  %at.reader = getelementptr i32, ptr %readers, i64 %i
  %reader.short = load i32, ptr %at.reader
  %read = sext i32 %reader.short to i64
  %read.now = icmp sgt i64 %read, %floor
  %read.before = icmp slt i64 %read, %start
  %read.other = and i1 %read.now, %read.before
  %is.write = xor i1 %is.load, true
  %race.loaded = and i1 %read.other, %is.write
  br i1 %race.loaded, label %note.loaded, label %mark
note.loaded:
{_noted(layout.LOADED, "%read")}
  br label %mark
mark:
  %read.old = icmp sle i64 %read, %epoch
  %marks = and i1 %read.old, %is.load
  %reader.new = select i1 %marks, i32 %short, i32 %reader.short
  store i32 %reader.new, ptr %at.reader
  br label %update
update:
  br i1 %is.load, label %word.end, label %writes
writes:
  br i1 %is.atomic, label %atomic, label %again
again:
  %is.again = icmp eq i64 %writer, %tick
  %is.first = icmp eq i64 %i, %element
  %compares = and i1 %is.again, %is.first
  br i1 %compares, label %compare, label %plainly
compare:
  %old = call i64 @sanitize.read(i64 %at, i64 %size)
  %differs = icmp ne i64 %old, %value
  br i1 %differs, label %note.twice, label %plainly
note.twice:
{_noted(layout.TWICE, "0")}
  br label %plainly
plainly:
  %tick.short = trunc i64 %tick to i32
  store i32 %tick.short, ptr %at.writer
  br label %word.end
atomic:
  %minus = sub i32 0, %short
  store i32 %minus, ptr %at.writer
  br label %word.end
word.end:
  %i.next = add i64 %i, 1
  %further = icmp ule i64 %i.next, %end
  br i1 %further, label %word, label %over
over:
  br i1 %is.store, label %write, label %fine
write:
  ; Two lanes of one vector are compared too: what the first stores is there when the second comes.
  call void @sanitize.write(i64 %at, i64 %size, i64 %value)
  br label %fine
fine:
  ret i1 true
}}"""


def _sized(head: str, each: str, rest: str) -> str:
    """A function of so many bytes of memory, one way for each size."""
    cases = "\n".join(f"    i64 {size}, label %bytes{size}" for size in (1, 2, 4))
    blocks = "\n".join(f"bytes{size}:\n" + each.replace("KIND", f"i{8 * size}") for size in (1, 2, 4))
    return f"""\
define internal {head} noinline {{
entry:
  %place = inttoptr i64 %at to ptr
  switch i64 %size, label %bytes8 [
{cases}
  ]
{blocks}
bytes8:
{rest}
}}"""


_READ = _sized(
    "i64 @sanitize.read(i64 %at, i64 %size)",
    "  %KIND = load KIND, ptr %place, align 1\n  %KIND.wide = zext KIND %KIND to i64\n  ret i64 %KIND.wide",
    "  %word = load i64, ptr %place, align 1\n  ret i64 %word",
)
_WRITE = _sized(
    "void @sanitize.write(i64 %at, i64 %size, i64 %value)",
    "  %KIND = trunc i64 %value to KIND\n  store KIND %KIND, ptr %place, align 1\n  ret void",
    "  store i64 %value, ptr %place, align 1\n  ret void",
)


def helpers() -> dict[str, str]:
    """The functions that every sanitized kernel has, by name."""
    return {
        "sanitize.record": _RECORD,
        "sanitize.find": _FIND,
        "sanitize.read": _READ,
        "sanitize.write": _WRITE,
        "sanitize.lane": _LANE,
    }
