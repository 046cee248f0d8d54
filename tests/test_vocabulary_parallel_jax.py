"""The class losses with their classes split over devices: `vocabulary_parallel_jax.py`, run once on eight."""

import ast
import re
from pathlib import Path

import pytest

pytest.importorskip("jax")

from tests.check_programs import found, refuse

PROGRAM = Path(__file__).with_name("vocabulary_parallel_jax.py")
GROUPS = [
    node.name
    for node in ast.parse(PROGRAM.read_text()).body
    if isinstance(node, ast.FunctionDef) and any("check" in ast.dump(d) for d in node.decorator_list)
]


def test_on_eight_devices():
    """All in one test, so that several workers of pytest do not start it several times."""
    said = found("-m", "tests.vocabulary_parallel_jax")
    for group in GROUPS:
        assert any(re.match(rf"{group}(:|$)", name) for name in said), group
    refuse(said)
