"""What both frameworks ask of a backward beyond its numbers, and ask alike."""

from collections.abc import Callable

from gradlab.autodiff.checker.contract import composed, cotangents, shared
from gradlab.autodiff.checker.core.comparison import Promises, first_line


def contract(p: Promises, ruled: bool) -> None:
    """Hold the function to all of it; a call that the check made up and that raises is a note.

    Args:
        ruled: there may be a hand-written rule; else only special cotangents are looked at.
    """
    promises: tuple[tuple[str, Callable[[Promises], None]], ...] = (
        (cotangents.CHECK, cotangents.special),
        (composed.COMPOSED, composed.composed),
        (composed.CROSSED, composed.crossed),
        (shared.SAME, shared.same_array),
        (shared.PAIRS, shared.pairs),
    )
    for check, promise in promises:
        if (p.probe.subject.untraced or not ruled) and check != cotangents.CHECK:
            continue
        try:
            promise(p)
        except Exception as error:
            p.note(f"{p.probe.subject.op}: {check} is not looked at ({first_line(error, 90)})")
