"""What a sanitized kernel calls for a vector that is not plainly within bounds: LLVM IR for one number of lanes."""

from gradlab.kernels.cpu import sanitize_layout as layout

_GIVEN = "i64 %size, i64 %access, i64 %site, i64 %program, i64 %tick"


def lanes(width: int, attributes: str) -> tuple[str, str]:
    """Name and text of the function that asks `sanitize.lane` for each active lane."""
    name = f"sanitize.lanes.{width}"
    word, byte, truth = (f"<{width} x {kind}>" for kind in ("i64", "i8", "i1"))
    text = f"""\
define internal {truth} @{name}(ptr %state, ptr %extent, {word} %at, {truth} %mask, {_GIVEN}, {word} %values)
    noinline {attributes} {{
entry:
  %ats = alloca {word}, align 64
  %words = alloca {word}, align 64
  %marks = alloca {byte}, align 64
  store {word} %at, ptr %ats
  store {word} %values, ptr %words
  %active = zext {truth} %mask to {byte}
  store {byte} %active, ptr %marks
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
  %fine = call i1 @sanitize.lane(ptr %state, ptr %extent, i64 %lane, {_GIVEN}, i64 %value)
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


def contiguous(width: int, access: int, attributes: str) -> tuple[str, str]:
    """Name and text of the function for neighbours in memory: their shadow at once, where nothing is wrong.

    It gives whether nothing is; else nothing has changed, and each lane is to be asked.
    """
    name = f"sanitize.{layout.ACCESSES[access]}.{width}"
    truth, short = (f"<{width} x {kind}>" for kind in ("i1", "i32"))
    races = "%read.other" if access == layout.STORE else "zeroinitializer"
    wrong = "%tick.all" if access == layout.STORE else "zeroinitializer"
    text = f"""\
define internal i1 @{name}(ptr %state, ptr %extent, i64 %first, i64 %size, i{width} %mask.bits, i64 %tick)
    noinline {attributes} {{
entry:
{_load("%extent", "low", layout.LOW)}
{_load("%extent", "bytes", layout.BYTES)}
{_load("%extent", "shift", layout.SHIFT)}
{_load("%extent", "inside", layout.INSIDE)}
{_load("%extent", "writers", layout.WRITERS)}
{_load("%extent", "readers", layout.READERS)}
  %offset = sub i64 %first, %low
  %above = icmp sge i64 %offset, 0
  %all = mul i64 %size, {width}
  %last = sub i64 %bytes, %all
  %below = icmp sle i64 %offset, %last
  %within = and i1 %above, %below
  %each = shl i64 1, %shift
  %same = icmp eq i64 %each, %size
  %dense = icmp eq i64 %inside, 0
  %known = and i1 %same, %dense
  %shadowed = icmp ne i64 %writers, 0
  %whole = and i1 %within, %known
  %fast = and i1 %whole, %shadowed
  br i1 %fast, label %shadow, label %slow
shadow:
{_load("%state", "floor", layout.FLOOR)}
{_load("%state", "start", layout.START)}
{_load("%state", "epoch", layout.EPOCH)}
{_splat("floor", width)}
{_splat("start", width)}
{_splat("epoch", width)}
{_splat("tick", width)}
  %mask = bitcast i{width} %mask.bits to {truth}
  %element = ashr i64 %offset, %shift
  %element.bytes = shl i64 %element, 2
  %writer.word = add i64 %writers, %element.bytes
  %writer.at = inttoptr i64 %writer.word to ptr
  %writer = load {short}, ptr %writer.at, align 4
  %wrote = call {short} @llvm.abs.v{width}i32({short} %writer, i1 false)
  %wrote.now = icmp sgt {short} %wrote, %floor.all
  %wrote.before = icmp slt {short} %wrote, %start.all
  %wrote.other = and {truth} %wrote.now, %wrote.before
  %is.wrong = icmp eq {short} %writer, {wrong}
  %amiss = or {truth} %wrote.other, %is.wrong
  %reads = icmp ne i64 %readers, 0
  br i1 %reads, label %reader, label %decide
reader:
  %reader.word = add i64 %readers, %element.bytes
  %reader.at = inttoptr i64 %reader.word to ptr
  %read = load {short}, ptr %reader.at, align 4
  %read.now = icmp sgt {short} %read, %floor.all
  %read.before = icmp slt {short} %read, %start.all
  %read.other = and {truth} %read.now, %read.before
  br label %decide
decide:
  %raced = phi {truth} [ zeroinitializer, %shadow ], [ {races}, %reader ]
  %both = or {truth} %amiss, %raced
  %active = and {truth} %both, %mask
  %active.bits = bitcast {truth} %active to i{width}
  %some = icmp ne i{width} %active.bits, 0
  br i1 %some, label %slow, label %mark
mark:
{_MARKS[access].format(truth=truth, short=short)}
fine:
  ret i1 true
slow:
  ret i1 false
}}"""
    return name, text


_MARKS = {
    layout.STORE: """\
  %writer.new = select {truth} %mask, {short} %tick.all, {short} %writer
  store {short} %writer.new, ptr %writer.at, align 4
  br label %fine""",
    layout.LOAD: """\
  br i1 %reads, label %note, label %fine
note:
  %note.word = add i64 %readers, %element.bytes
  %note.at = inttoptr i64 %note.word to ptr
  %noted = load {short}, ptr %note.at, align 4
  %old = icmp sle {short} %noted, %epoch.all
  %marks = and {truth} %old, %mask
  %reader.new = select {truth} %marks, {short} %start.all, {short} %noted
  store {short} %reader.new, ptr %note.at, align 4
  br label %fine""",
}


def declarations(width: int) -> dict[str, str]:
    """What the functions call of LLVM's own."""
    absolute = f"llvm.abs.v{width}i32"
    return {absolute: f"declare <{width} x i32> @{absolute}(<{width} x i32>, i1)"}


def _load(place: str, name: str, word: int) -> str:
    return f"  %{name}.at = getelementptr i64, ptr {place}, i64 {word}\n  %{name} = load i64, ptr %{name}.at"


def _splat(name: str, width: int) -> str:
    kind = f"<{width} x i32>"
    return (
        f"  %{name}.short = trunc i64 %{name} to i32\n"
        f"  %{name}.one = insertelement {kind} poison, i32 %{name}.short, i64 0\n"
        f"  %{name}.all = shufflevector {kind} %{name}.one, {kind} poison, {kind} zeroinitializer"
    )
