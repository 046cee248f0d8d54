"""`base/aborts.py`: what is left of a process that native code aborts; each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
START = """
import os, sys, time
from gradlab.base.aborts import explained

def explain(text):
    return ("seen: " + text.splitlines()[-1], 5) if "known" in text else None

with explained(explain, "chatter"):
    print("from Python")
    print("an error of Python's", file=sys.stderr)
    os.write(1, b"some chatter\\n")
    os.write(2, b"a warning\\n")
"""


def ended(within, after=""):
    """What a process ends with and prints that does this within `explained`, and that after it."""
    lines = "".join(f"    {line}\n" for line in within)
    run = subprocess.run(
        [sys.executable, "-c", START + lines + after], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return run.returncode, run.stdout, run.stderr


@pytest.mark.parametrize("thread", [False, True])
def test_an_abort_is_a_line_and_a_code(thread):
    """Also in a thread that Python does not know, while Python's main one waits."""
    abort = ["import ctypes", "abort = ctypes.CDLL(None).abort", "fatal = b'F1130 00:00:00.1 known: who is gone\\n'"]
    if thread:
        abort += ["import threading", "threading.Thread(target=lambda: (os.write(2, fatal), abort())).start()"]
        abort += ["time.sleep(60)"]
    else:
        abort += ["time.sleep(1)", "os.write(2, fatal)", "abort()"]
    code, out, err = ended(abort)
    assert (code, out) == (5, "from Python\n")
    assert err == "an error of Python's\na warning\nseen: F1130 00:00:00.1 known: who is gone\n"


def test_another_abort_takes_its_course():
    code, out, err = ended(["import ctypes", "os.write(2, b'heap corrupt\\n')", "ctypes.CDLL(None).abort()"])
    assert (code, out) == (-6, "from Python\n")
    assert "heap corrupt" in err


def test_without_an_abort_only_chatter_is_gone():
    """And everything goes to its own place again."""
    code, out, err = ended(["os.write(2, b'no end of line, ')"], "os.write(1, b'a last word')")
    assert (code, out) == (0, "from Python\na last word")
    assert err == "an error of Python's\na warning\nno end of line, "
