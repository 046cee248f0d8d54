"""Sizes as a user says them: "M=512 K=64", for one op's largest case."""

import re
from collections.abc import Mapping
from dataclasses import replace

from gradlab.kernels.spec import Case, Spec


def sized(op: Spec, case: Case, text: str) -> Case:
    """The case with other sizes, the options as they are.

    Raises:
        ValueError: words that are no sizes, an axis that the op has not, a size below 1, sizes that leave no result.
    """
    asked = parsed(op, case, text)
    made = replace(case, name=" ".join(f"{axis}={n}" for axis, n in asked.items()), sizes={**case.sizes, **asked})
    for axis, n in op.at(made).sizes.items():
        if isinstance(n, int) and n < 1:
            raise ValueError(f"bench: sizes {text!r} leave {op.name} with {axis} = {n}, wanted 1 or more")
    return made


def parsed(op: Spec, case: Case, text: str) -> Mapping[str, int]:
    """Axis by axis what was said."""
    found: dict[str, int] = {}
    for word in re.split(r"[\s,]+", text.strip()):
        axis, equals, number = word.partition("=")
        if axis not in case.sizes:
            raise ValueError(f"bench: sizes {text!r} name {axis!r}; {op.name} has {', '.join(case.sizes)}")
        if not equals or not number.isdecimal() or int(number) < 1:
            raise ValueError(f"bench: sizes {text!r} say {word!r}, wanted {axis}= and a whole number of 1 or more")
        found[axis] = int(number)
    return found
