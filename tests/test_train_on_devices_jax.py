"""`gradlab train --devices` on eight devices of one process: `train_on_devices_jax.py`, run once."""

import pytest

pytest.importorskip("jax")
for needed in ("optax", "orbax.checkpoint", "safetensors", "sklearn"):
    pytest.importorskip(needed)

from tests.check_programs import found, refuse


def test_on_eight_devices():
    """All in one test, so that several workers of pytest do not start it several times."""
    said = found("-W", "error", "-m", "tests.train_on_devices_jax", flags="")
    assert len(said) > 10
    refuse(said)
