"""How much memory this process took at most, as Linux counts it; imports neither framework."""

from contextlib import suppress
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_before = 0


def reset_peak() -> None:
    """Start counting: what the process has now is not counted."""
    global _before
    # A kernel without it: the mark may be one of before, and the peak look larger than it is.
    with suppress(OSError):
        # 5 sets the high-water mark back to what is in use (man 5 proc_pid_clear_refs).
        _RESET.write_text("5")
    _before = _read("VmRSS")


def peak_since_reset() -> int:
    """Bytes in use at most since `reset_peak`, beyond those in use then; 0 where the system does not tell."""
    return max(0, _read("VmHWM") - _before)


def _read(key: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return 1024 * int(found[0]) if found else 0
