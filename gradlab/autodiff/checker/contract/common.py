"""Requirements on a backward that both frameworks share, beyond its numbers."""

from collections.abc import Callable

from gradlab.autodiff.checker.contract import aliasing, composition, special_cotangents
from gradlab.autodiff.checker.core.comparison import Comparison, first_line


def contract(cmp: Comparison, has_rule: bool) -> None:
    """Check all of them; a generated call that raises becomes a note.

    Args:
        has_rule: the function may have a hand-written rule; if not, only special cotangents are checked.
    """
    checks: tuple[tuple[str, Callable[[Comparison], None]], ...] = (
        (special_cotangents.CHECK, special_cotangents.special_cotangents),
        (composition.COMPOSED, composition.composition),
        (composition.CROSSED, composition.interleaved),
        (aliasing.SAME, aliasing.same_array),
        (aliasing.PAIRS, aliasing.pairs),
    )
    for check, compare in checks:
        if (cmp.probe.subject.without_jit or not has_rule) and check != special_cotangents.CHECK:
            continue
        try:
            compare(cmp)
        except Exception as error:
            cmp.note(f"{cmp.probe.subject.op}: {check} is not checked ({first_line(error, 90)})")
