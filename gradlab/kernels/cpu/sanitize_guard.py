"""What a sanitized kernel calls where an access is not plainly within bounds: LLVM IR of one lane, and of a vector.

Each gives whether a lane may go on; what it may not do, and what is suspect though it goes on, it notes in a record.
"""

from gradlab.kernels.cpu import sanitize_layout as layout

_RECORD = f"""\
define internal void @sanitize.record(ptr %state, i64 %site, i64 %kind, i64 %program, i64 %at, i64 %other, ptr %extent)
    noinline {{
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

# The extent that an address belongs to, as the host knows it.
_FIND = f"""\
define internal ptr @sanitize.find(ptr %state, i64 %at) noinline {{
entry:
  %place = getelementptr i64, ptr %state, i64 {layout.FIND}
  %finder = load ptr, ptr %place
  %found = call i64 %finder(i64 %at)
  %extent = inttoptr i64 %found to ptr
  ret ptr %extent
}}"""


def _word(extent: str, name: str, word: int, kind: str = "i64") -> str:
    return (
        f"  %at.{name} = getelementptr i64, ptr {extent}, i64 {word}\n  %{name} = load {kind}, ptr %at.{name}, align 8"
    )


def _noted(name: str, kind: int, other: str, after: str) -> str:
    """A block that notes a fault and goes on."""
    given = f"ptr %state, i64 %site, i64 {kind}, i64 %program, i64 %at, i64 {other}, ptr %extent"
    return f"{name}:\n  call void @sanitize.record({given})\n  br label %{after}"


_LANE = f"""\
define internal i1 @sanitize.lane(ptr %state, ptr %given, i64 %at, i64 %size, i64 %access, i64 %site, i64 %program,
    i64 %tick, i64 %value) noinline {{
entry:
  %known = icmp ne ptr %given, null
  br i1 %known, label %held, label %look
look:
  %found = call ptr @sanitize.find(ptr %state, i64 %at)
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
  ret i1 true
}}"""


def helpers() -> dict[str, str]:
    """The functions that every sanitized kernel has, by name."""
    return {"sanitize.record": _RECORD, "sanitize.find": _FIND, "sanitize.lane": _LANE}


def lanes(width: int, attributes: str) -> tuple[str, str]:
    """Name and text of the function that asks `sanitize.lane` for each live lane of a vector."""
    name = f"sanitize.lanes.{width}"
    word, byte, truth = (f"<{width} x {kind}>" for kind in ("i64", "i8", "i1"))
    text = f"""\
define internal {truth} @{name}(ptr %state, ptr %extent, {word} %at, {truth} %mask, i64 %size, i64 %access, i64 %site,
    i64 %program, i64 %tick, {word} %values) noinline {attributes} {{
entry:
  %ats = alloca {word}, align 64
  %words = alloca {word}, align 64
  %marks = alloca {byte}, align 64
  store {word} %at, ptr %ats
  store {word} %values, ptr %words
  %live = zext {truth} %mask to {byte}
  store {byte} %live, ptr %marks
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %after ]
  %mark.at = getelementptr i8, ptr %marks, i64 %i
  %mark = load i8, ptr %mark.at
  %is = icmp ne i8 %mark, 0
  br i1 %is, label %one, label %after
one:
  %lane.at = getelementptr i64, ptr %ats, i64 %i
  %lane = load i64, ptr %lane.at
  %value.at = getelementptr i64, ptr %words, i64 %i
  %value = load i64, ptr %value.at
  %fine = call i1 @sanitize.lane(ptr %state, ptr %extent, i64 %lane, i64 %size, i64 %access, i64 %site, i64 %program,
    i64 %tick, i64 %value)
  %kept = zext i1 %fine to i8
  store i8 %kept, ptr %mark.at
  br label %after
after:
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, {width}
  br i1 %more, label %head, label %done
done:
  %end = load {byte}, ptr %marks
  %found = icmp ne {byte} %end, zeroinitializer
  ret {truth} %found
}}"""
    return name, text
