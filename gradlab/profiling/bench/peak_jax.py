"""jax's peak: results and temporaries in the compiled program's memory plan."""

import functools
from collections.abc import Callable
from typing import Any

from gradlab.autodiff.frameworks.side import Side


def peak_bytes(side: Side, call: Callable[[], Any]) -> int | None:
    """Bytes of results and temporaries of one program; None for a call that is many programs."""
    if not isinstance(call, functools.partial) or not hasattr(call.func, "lower"):
        return None
    plan = call.func.lower(*call.args, **call.keywords).compile().memory_analysis()
    return None if plan is None else plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
