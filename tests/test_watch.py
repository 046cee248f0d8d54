"""The watch on a GPU's clocks, with an nvidia-smi of the test's own."""

import os
import sys
import time

import pytest

from gradlab.profiling.bench.watch import CAPPED, SLOWED, Watch


@pytest.fixture
def card(tmp_path, monkeypatch):
    """What the nvidia-smi on the path says, look by look."""

    def says(*lines):
        fake = tmp_path / "nvidia-smi"
        fake.write_text(
            f"#!{sys.executable}\nimport time\nfor line in {lines!r}: print(line, flush=True)\ntime.sleep(60)\n"
        )
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return says


def looked(watch, looks):
    """Wait until so many looks have come."""
    end = time.monotonic() + 20
    while len(watch._samples) < looks and time.monotonic() < end:
        time.sleep(0.01)


def test_clocks_and_reasons_are_read(card):
    card("1980, 2619, 41, 310.5, 0x0000000000000000", "1200, 2619, 88, 700.0, 0x0000000000000020", "noise", "1, 2")
    clock = iter(range(100)).__next__
    with Watch("cuda", clock) as watch:
        looked(watch, 2)
    assert len(watch._samples) == 2
    assert not watch.slowed(-1, 0.5)
    assert watch.slowed(0.5, 1.5)
    # The look before a round says how it started.
    assert watch.slowed(1.5, 1.7)
    assert watch.summary(0, 0.5) == {"sm_mhz": 1980, "memory_mhz": 2619, "celsius": 41, "watts": 310.5, "capped": 0}


def test_the_power_cap_drops_nothing_and_is_recorded(card):
    assert not SLOWED & CAPPED
    card("1500, 2619, 60, 700.0, 0x0000000000000004", "1500, [N/A], 60, 700.0, 0x0000000000000000")
    with Watch("cuda", iter(range(100)).__next__) as watch:
        looked(watch, 2)
    assert not watch.slowed(0, 10)
    assert watch.summary(0, 10)["capped"] == 0.5


def test_without_a_card_there_is_nothing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for device in ("cuda", "cpu"):
        with Watch(device) as watch:
            assert not watch.slowed(0, 1e9)
            assert watch.summary(0, 1e9) == {}


def test_the_process_ends_with_the_watch(card):
    card("1980, 2619, 41, 310.5, 0x0")
    with Watch("cuda") as watch:
        looked(watch, 1)
    assert watch._process.poll() is not None
