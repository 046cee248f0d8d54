"""What a sanitized kernel calls for a vector that is not plainly within bounds: LLVM IR for one number of lanes."""

_GIVEN = "i64 %size, i64 %access, i64 %site, i64 %program, i64 %tick"


def lanes(width: int, attributes: str) -> tuple[str, str]:
    """Name and text of the function that asks `sanitize.lane` for each active lane."""
    name = f"sanitize.lanes.{width}"
    word, byte, truth = (f"<{width} x {kind}>" for kind in ("i64", "i8", "i1"))
    text = f"""\
define internal {truth} @{name}(ptr %state, ptr %extent, {word} %at, {truth} %mask, {_GIVEN}, {word} %values)
    noinline cold {attributes} {{
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
