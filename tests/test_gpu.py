"""The GPU run, without a GPU: its parts are planned, faked, stopped, and reported."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradlab.profiling import gpu
from gradlab.profiling.bench.file import write
from gradlab.profiling.bench.row import Group, Member
from gradlab.profiling.gpu import Part
from gradlab.profiling.gpu_part import execute

MACHINE = {"gpu": "NVIDIA H200", "driver": "580.1", "date": "2026-01-02 03:04 UTC", "commit": "abc"}
HERE = Path(__file__).parent
GROUP = Group(
    op="relu", case="large", sizes={"E": 4}, side="torch", direction="forward", dtype="float32", device="cuda", seed=0,
    flops=4, bytes=32, bandwidth=4e12, rate=5e13, twin=(1e-6, 2e-6),
    members=(Member("hand", "gradlab.torch", "eager", warm=(1e-6, 1e-6)), Member("native", "F.relu", "eager", warm=(1e-6, 2e-6))),
)  # fmt: skip


def python(code):
    return (sys.executable, "-c", code)


def test_without_cuda_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "device", lambda side: "cpu")
    assert gpu.main() == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "gradlab gpu: no CUDA device here: torch sees cpu, jax sees cpu\n")


def test_devices_are_asked_in_a_process_of_their_own(monkeypatch):
    assert gpu.device("torch") in ("cpu", "cuda")
    assert gpu.device("nothing") == "ValueError: unknown side 'nothing'; the lab has torch, jax"


def test_one_part_fails_one_is_late_and_the_rest_goes_on(tmp_path, capfd):
    file = tmp_path / "torch-float32.json"
    write([GROUP], {"machine": MACHINE, "complete": True}, file, None)
    text = file.read_text()
    (tmp_path / "stale.json").write_text(text)
    save = f"import pathlib; pathlib.Path({str(file)!r}).write_text({text!r}); print('saved')"
    plan = [
        Part("suite", python("print('1 failed'); raise SystemExit(3)"), 1),
        Part("writes", python(save), 1, file=file.name),
        Part("writes nothing", python("print('|')"), 1, file="stale.json"),
        Part("other", (), 1, missing="no CUDA device for jax, which sees cpu", file="jax-float32.json"),
        Part("sleeps", python("import time; print('awake', flush=True); time.sleep(60)"), 0.1),
        Part("is missing", (str(tmp_path / "missing"),), 1),
    ]
    outcomes = gpu.run(plan, tmp_path, MACHINE, limit=12.0)
    assert [o.verdict for o in outcomes] == ["failed", "ok", "ok", "skipped", "timed out", "failed"]
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("# NVIDIA H200\n")
    assert "- driver: 580.1\n- date: 2026-01-02 03:04 UTC\n- commit: abc\n" in page
    assert "| suite | failed | 0 | 1 failed |" in page
    assert "| other | skipped | 0 | no CUDA device for jax, which sees cpu |" in page
    assert "## suite: failed\n\n```\n1 failed\n```" in page
    assert "## sleeps: timed out\n\n```\nawake\n" in page
    assert page.count("| relu | large | E 4 |") == 2
    assert not (tmp_path / "stale.json").exists()
    assert "awake" in capfd.readouterr().out


def test_the_page_is_there_after_each_part(tmp_path):
    look = f"print(open({str(tmp_path / 'README.md')!r}).read())"
    outcomes = gpu.run([Part("first", python("print('one')"), 1), Part("second", python(look), 1)], tmp_path, MACHINE)
    assert "| first | ok | 0 | one |" in outcomes[1].tail
    assert "| second | not started | | |" in outcomes[1].tail


@pytest.mark.parametrize(("verdicts", "code"), [("ok", 0), ("skipped", 0), ("failed", 1), ("timed out", 1)])
def test_exit_code(monkeypatch, tmp_path, verdicts, code):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "device", lambda side: "cuda")
    monkeypatch.setattr(gpu, "describe", lambda: MACHINE)
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    monkeypatch.setattr(gpu, "run", lambda plan, folder, machine: [gpu.Outcome("suite", verdicts, 1.0, ())])
    assert gpu.main() == code
    assert (tmp_path / "results" / "nvidia-h200").is_dir()


def test_parts(tmp_path):
    plan = gpu.parts({"torch": "cuda", "jax": "cpu"}, tmp_path)
    assert [p.name for p in plan] == [
        "suite",
        *(f"benchmark, {side}, {dtype}, {mode}"
          for mode in ("eager", "compiled") for dtype in ("float32", "bfloat16") for side in ("torch", "jax")),
    ]  # fmt: skip
    assert "pytest" in plan[0].command
    assert plan[1].command[3:12] == ("bench", "--side", "torch", "--dtype", "float32", "--mode", "eager", "--json",
                                     str(tmp_path / "torch-float32-eager.json"))  # fmt: skip
    assert [bool(p.missing) for p in plan] == [False, *[False, True] * 4]
    assert plan[2].missing == "no CUDA device for jax, which sees cpu"


def test_a_part_that_is_late_can_write_what_it_has_and_its_children_end(tmp_path):
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    open({str(tmp_path / "rows")!r}, "w").write("rows")
"""
    start = time.monotonic()
    outcome = execute("late", python(code), tmp_path, {}, 2.0)
    assert outcome.verdict == "timed out"
    assert (tmp_path / "rows").read_text() == "rows"
    assert time.monotonic() - start < 30
    # The signal is sent; a busy machine takes its time to carry it out.
    deadline = time.monotonic() + 20
    while _running(int(outcome.tail[0])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _running(int(outcome.tail[0]))


def _running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_module_runs_as_make_runs_it():
    done = subprocess.run(
        [sys.executable, "-c", "from gradlab.profiling import gpu; gpu.device = lambda s: 'cpu'; raise SystemExit(gpu.main())"],
        cwd=HERE.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
