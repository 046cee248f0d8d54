"""The options of a loss of classes, checked before anything runs. Framework-free."""

import math
import numbers
from typing import Any

from gradlab.autodiff.arguments.errors import refuse, want_bool, want_choice
from gradlab.kernels.class_losses.settings import ClassLoss


def class_loss(
    op: str, *, ignore_index: Any, reduction: Any, label_smoothing: Any, z_loss: Any, return_z_loss: Any, softcap: Any
) -> ClassLoss:
    """The settings of a call, once all of its options are checked.

    Raises:
        ValueError: an unknown reduction, a number out of range.
        TypeError: not an int, a number, True or False where one is wanted.
    """
    want_choice(op, "reduction", reduction, ("none", "mean", "sum"))
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Integral):
        refuse(op, "ignore_index", repr(ignore_index), "an int", TypeError)
    if not -(2**63) <= int(ignore_index) < 2**63:
        refuse(op, "ignore_index", ignore_index, "an int of 64 bits, as classes are at most")
    want_bool(op, "return_z_loss", return_z_loss)
    eps = _number(op, "label_smoothing", label_smoothing)
    if not 0 <= eps <= 1:
        refuse(op, "label_smoothing", label_smoothing, "a number from 0 to 1")
    if not 0 <= _number(op, "z_loss", z_loss) < math.inf:
        refuse(op, "z_loss", z_loss, "a number from 0")
    cap = 0.0 if softcap is None else _number(op, "softcap", softcap)
    if softcap is not None and not 0 < cap < math.inf:
        refuse(op, "softcap", softcap, "a number above 0, or None")
    return ClassLoss(int(ignore_index), eps, cap)


def want_bytes(op: str, argument: str, came: Any) -> int:
    """A number of bytes.

    Raises:
        TypeError: not an int.
        ValueError: one below 0.
    """
    if isinstance(came, bool) or not isinstance(came, numbers.Integral):
        refuse(op, argument, repr(came), "an int", TypeError)
    if came < 0:
        refuse(op, argument, came, "a number of bytes from 0")
    return int(came)


def _number(op: str, argument: str, came: Any) -> float:
    if isinstance(came, bool) or not isinstance(came, numbers.Real):
        refuse(op, argument, repr(came) if isinstance(came, str) else f"a {type(came).__name__}", "a number", TypeError)
    return float(came)
