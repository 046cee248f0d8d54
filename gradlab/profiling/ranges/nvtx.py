"""Ranges for NVTX: a domain a side, a category and a colour a pass, a structured payload; each built once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gradlab.profiling.ranges.label import PASSES, Label

# ARGB, colour-blind safe: blue, orange, purple.
COLOURS = dict(zip(PASSES, (0xFF0072B2, 0xFFE69F00, 0xFFCC79A7), strict=True))
# Ranges without a pass: a profile's own steps.
GREY = 0xFF999999
# The most characters of the shapes; longer text ends in "...".
LETTERS = 120
PAYLOAD = np.dtype(
    [
        ("op", "U40"),
        ("kernel", "U64"),
        ("pass", "U8"),
        ("shapes", f"U{LETTERS}"),
        ("dtype", "U10"),
        ("bytes", np.int64),
        ("flops", np.int64),
    ]
)


class NvtxSink:
    """Pushes and pops ranges in the domains `gradlab.torch` and `gradlab.jax`."""

    def __init__(self, nvtx: Any) -> None:
        self._domains = {side: nvtx.get_domain(f"gradlab.{side}") for side in ("torch", "jax")}
        self._built: dict[tuple[str, Label], Any] = {}
        for domain in self._domains.values():
            # In the order of the passes, so that a category has one number in both domains.
            for direction in PASSES:
                domain.get_category_id(direction)

    def push(self, side: str, label: Label) -> None:
        self._domains[side].push_range(self._attributes(side, label))

    def pop(self, side: str) -> None:
        self._domains[side].pop_range()

    @contextmanager
    def span(self, side: str, label: Label) -> Iterator[None]:
        """A range of the whole process: what other threads do meanwhile, as autograd's, lies in it too."""
        number = self._domains[side].start_range(self._attributes(side, label))
        try:
            yield
        finally:
            self._domains[side].end_range(number)

    def _attributes(self, side: str, label: Label) -> Any:
        attributes = self._built.get((side, label))
        if attributes is None:
            # A new payload costs microseconds, one that is there a tenth of it.
            attributes = self._built[side, label] = self._domains[side].get_event_attributes(
                message=label.message,
                color=COLOURS.get(label.direction, GREY),
                category=label.direction or None,
                payload=payload(label) if label.direction else None,
            )
        return attributes


def sink() -> NvtxSink | None:
    """The sink, or None when no tool listens.

    Raises:
        ModuleNotFoundError: the package nvtx is not installed.
    """
    try:
        import nvtx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("NVTX ranges need nvtx, which is not installed: pip install nvtx") from error
    if isinstance(nvtx.get_domain("gradlab.torch"), nvtx._lib.DummyDomain):
        return None
    return NvtxSink(nvtx)


def payload(label: Label) -> np.ndarray:
    """The label as the record that a tool decodes."""
    text = ", ".join(f"{name}[{' '.join(map(str, shape))}]" for name, shape in label.shapes)
    text = text if len(text) <= LETTERS else text[: LETTERS - 3] + "..."
    values = (label.op, label.kernel, label.direction, text, label.dtype, label.bytes, label.flops)
    return np.array(values, PAYLOAD)
