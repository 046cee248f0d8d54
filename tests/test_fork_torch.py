"""A child forked while another thread compiles, runs a kernel in the interpreter, or records, runs kernels at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
if not hasattr(os, "fork"):
    pytest.skip("no fork on this system", allow_module_level=True)

# A process of its own: what else runs in that of the tests has threads, jax among it, that no child may inherit.
SCRIPT = """
import os, signal, sys, threading
import torch
import gradlab.torch as lab
from gradlab.kernels.runtime import interpret_triton, launch_triton
from gradlab.kernels.cpu import lower
from triton.runtime import interpreter

torch.set_num_threads(1)
x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
entered, leave = threading.Event(), threading.Event()

def pause():
    entered.set()
    leave.wait(120)

def compiling():
    real = lower.lower
    def paused(*args):
        lower.lower = real
        pause()
        return real(*args)
    lower.lower = paused
    lab.relu(x)

def inside_a_kernel():
    lab.relu(x)
    builder = interpreter.interpreter_builder
    start = builder.set_grid_dim
    def started(*grid):
        builder.set_grid_dim = start
        pause()
        start(*grid)
    builder.set_grid_dim = started
    lab.relu(x)

def finding_out():
    patch = interpreter._patch_lang
    def patched(fn):
        patch(fn)
        interpreter._patch_lang = patch
        pause()
    interpreter._patch_lang = patched
    lab.relu(x)

def recording():
    with launch_triton.recording():
        pause()

def members():
    return [dict(vars(place)) for place in interpret_triton._switched]

MEMBERS = members()
for where in sys.argv[1:]:
    entered.clear()
    leave.clear()
    thread = threading.Thread(target=globals()[where], daemon=True)
    thread.start()
    assert entered.wait(60)
    assert (members() != MEMBERS) is (os.environ["GRADLAB_CPU"] == "interpret"), "the language is switched"
    child = os.fork()
    if child == 0:
        # Whoever waits for a lock that nobody holds is ended.
        signal.alarm(30)
        back = members() == MEMBERS
        right = lab.relu(x).tolist() == [[1.0, 0.0], [3.0, 4.0]]
        right &= lab.linear(x, x).tolist() == [[5.0, -5.0], [-5.0, 25.0]]
        os._exit(0 if back and right and members() == MEMBERS else 3)
    status = os.waitpid(child, 0)[1]
    leave.set()
    thread.join()
    assert lab.relu(x).tolist() == [[1.0, 0.0], [3.0, 4.0]], "the parent goes on"
    print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(
    ("where", "how"),
    # What is compiled, and found out, once a process comes first.
    [(("compiling", "recording"), "compile"), (("finding_out", "inside_a_kernel"), "interpret")],
)
def test_a_forked_child_runs_kernels_at_once(tmp_path, where, how):
    script = tmp_path / "forks.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[1])
    settings = {"PYTHONPATH": root, "GRADLAB_CPU": how, "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, str(script), *where],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["0"] * len(where), (
        "-14: it waited for a lock; 3: a wrong value, or a language left switched"
    )


def test_a_child_forked_by_the_thread_that_holds_a_lock_goes_on_holding_it():
    code = (
        "import os; from gradlab.kernels.runtime.forking import Lock\n"
        "put_back = []; lock = Lock(lambda: put_back.append(1))\n"
        "with lock:\n"
        "    child = os.fork()\n"
        "    with lock: pass\n"
        "if child == 0: os._exit(len(put_back))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.strip() == "0"
