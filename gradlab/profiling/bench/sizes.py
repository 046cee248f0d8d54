"""Parses the --sizes option, "M=512 K=64", for one op's largest case."""

import re
from collections.abc import Mapping
from dataclasses import replace

from gradlab.kernels.spec import Case, Spec


def sized(op: Spec, case: Case, text: str, command: str = "bench") -> Case:
    """The case with other sizes, the options as they are; `command` is who asks, for the errors.

    Raises:
        ValueError: text that is no sizes, an unknown axis, a size below 1, or sizes for which the result is empty.
    """
    sizes = parsed(case, text, command)
    made = replace(case, name=" ".join(f"{axis}={n}" for axis, n in sizes.items()), sizes={**case.sizes, **sizes})
    for axis, n in op.at(made).sizes.items():
        if isinstance(n, int) and n < 1:
            raise ValueError(f"{command}: sizes are {text!r}, which make {axis} = {n}, wanted at least 1")
    return made


def parsed(case: Case, text: str, command: str = "bench") -> Mapping[str, int]:
    """The sizes by axis."""
    found: dict[str, int] = {}
    for word in re.split(r"[\s,]+", text.strip()):
        axis, equals, number = word.partition("=")
        if axis not in case.sizes:
            raise ValueError(f"{command}: sizes are {text!r} with axis {axis!r}, wanted one of {', '.join(case.sizes)}")
        if not equals or not number.isdecimal() or int(number) < 1:
            raise ValueError(
                f"{command}: sizes are {text!r} with {word!r}, wanted {axis}= and a whole number of at least 1"
            )
        found[axis] = int(number)
    return found
