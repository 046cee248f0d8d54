"""The GPU run, without a GPU: its parts are planned, faked, stopped, and reported."""

import dataclasses
import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gradlab.autodiff.frameworks.side import SIDES
from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.kernels.spec import spec
from gradlab.profiling.bench.file import read_json, write
from gradlab.profiling.bench.row import Group, Member
from gradlab.profiling.gpu import rows, smoke
from gradlab.profiling.gpu import run as gpu
from gradlab.profiling.gpu.part import execute
from gradlab.profiling.gpu.run import Part

MACHINE = {"gpu": "NVIDIA H200", "driver": "580.1", "date": "2026-01-02 03:04 UTC", "commit": "abc"}
HERE = Path(__file__).parent
GROUP = Group(
    op="relu", case="large", sizes={"E": 4}, side="torch", direction="forward", dtype="float32", device="cuda", seed=0,
    flops=4, bytes=32, bandwidth=4e12, rate=5e13, repeated_native=(1e-6, 2e-6),
    members=(Member("gradlab", "gradlab.torch", "eager", warm=(1e-6, 1e-6)), Member("native", "F.relu", "eager", warm=(1e-6, 2e-6))),
)  # fmt: skip


def python(code):
    return (sys.executable, "-c", code)


ABOUT = {"gpu": "NVIDIA H200", "source": "abc"}
# What a borrowed machine has not.
BARE = (
    "hypothesis",
    "jinja2",
    "matplotlib",
    "mypy",
    "nvtx",
    "optax",
    "rich",
    "ruff",
    "selenium",
    "sklearn",
    "typer",
    "xdist",
)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """From then on the processes of a run find none of BARE."""
    blocked = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in BARE)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(blocked)
    monkeypatch.setitem(gpu.ENV, "PYTHONPATH", f"{tmp_path / 'bare'}:{gpu.ROOT}")


def run(plan, folder, named=(), seconds=30.0):
    return gpu.run(plan, folder, MACHINE, ABOUT, set(named), time.monotonic() + seconds)


def test_without_cuda_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "devices", lambda: {"torch": "cpu", "jax": "cpu"})
    assert gpu.main([]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "gradlab gpu: no CUDA device here: torch sees cpu, jax sees cpu\n")


def test_devices_are_asked_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(gpu, "SIDES", ("torch", "nothing"))
    found = gpu.devices()
    assert found["torch"] in ("cpu", "cuda")
    assert found["nothing"] == "ValueError: side: name is 'nothing', wanted one of torch, jax"


def test_one_part_fails_one_is_late_and_the_rest_goes_on(tmp_path, capfd):
    file = tmp_path / "torch-float32.json"
    write([GROUP], {"machine": MACHINE, "complete": True}, {"json": file})
    text = file.read_text()
    save = f"import pathlib; pathlib.Path({str(file)!r}).write_text({text!r}); print('saved')"
    plan = [
        Part("suite", python("print('1 failed'); raise SystemExit(3)")),
        Part("writes", python(save), file=file.name),
        Part("writes-nothing", python("print('|')"), file="nothing.json"),
        Part("other", (), missing="no CUDA device for jax, which sees cpu", file="jax-float32.json"),
        Part("sleeps", python("import time; print('awake', flush=True); time.sleep(60)"), most=5.0),
        Part("is-missing", (str(tmp_path / "missing"),)),
    ]
    outcomes = run(plan, tmp_path)
    assert [o.verdict for o in outcomes.values()] == ["failed", "ok", "ok", "skipped", "timed out", "failed"]
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("# NVIDIA H200\n")
    assert "- driver: 580.1\n- date: 2026-01-02 03:04 UTC\n- commit: abc\n" in page
    assert "| suite | failed | 0 | 1 failed |" in page
    assert "| other | skipped | 0 | no CUDA device for jax, which sees cpu |" in page
    assert "## suite: failed\n\n```\n1 failed\n```" in page
    assert "## sleeps: timed out\n\n```\nawake\n" in page
    assert page.count("| relu | large | E 4 |") == 2
    assert "awake" in capfd.readouterr().out


def test_the_page_is_there_after_each_part(tmp_path):
    look = f"print(open({str(tmp_path / 'README.md')!r}).read())"
    outcomes = run([Part("first", python("print('one')")), Part("second", python(look))], tmp_path)
    assert "| first | ok | 0 | one |" in outcomes["second"].tail
    assert "| second | not started | | |" in outcomes["second"].tail


def test_a_later_call_goes_on_with_what_is_not_finished(tmp_path):
    """Nothing is done twice, unless it is named; another state of the package has finished nothing."""
    log = tmp_path / "log"
    note = lambda name, code=0: python(f"open({str(log)!r}, 'a').write({name!r}); raise SystemExit({code})")
    plan = [Part("a", note("a")), Part("b", note("b", 1)), Part("c", note("c")), Part("c-more", note("C"))]
    run(plan, tmp_path, ["a"])
    assert log.read_text() == "a"
    assert "| b | not started | | |" in (tmp_path / "README.md").read_text()
    assert list(run(plan, tmp_path)) == ["a", "b", "c", "c-more"]
    assert log.read_text() == "abcC"
    run(plan, tmp_path)
    assert log.read_text() == "abcCb"
    run(plan, tmp_path, ["c", "c-more"])
    assert log.read_text() == "abcCbcC"
    gpu.run(plan, tmp_path, MACHINE, ABOUT | {"source": "other"}, set(), time.monotonic() + 30)
    assert log.read_text() == "abcCbcCabcC"


def test_what_there_is_no_time_for_is_not_started(tmp_path):
    outcomes = run([Part("a", python("pass")), Part("b", python("pass"))], tmp_path, seconds=1.0)
    assert outcomes == {}
    assert "| a | not started | | |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("skipped", 0), ("failed", 1), ("timed out", 1)])
def test_exit_code(monkeypatch, tmp_path, verdict, code):
    monkeypatch.setattr(gpu, "devices", lambda: {"torch": "cuda", "jax": "cuda"})
    monkeypatch.setattr(gpu, "describe", lambda: MACHINE)
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    monkeypatch.setattr(gpu, "run", lambda plan, *rest: {"smoke-torch": gpu.Outcome("smoke-torch", verdict, 1.0, ())})
    assert gpu.main([], tmp_path) == code
    assert (tmp_path / "results" / "nvidia-h200").is_dir()


def test_a_part_that_is_none_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "devices", lambda: {"torch": "cuda", "jax": "cuda"})
    assert gpu.main(["moke"], tmp_path) == 2
    assert capsys.readouterr().err.startswith(
        "gradlab gpu: part is 'moke', wanted one of smoke-torch, smoke-jax, torch-"
    )
    assert not list(tmp_path.iterdir())


def test_parts(tmp_path):
    plan = {p.name: p for p in gpu.parts({"torch": "cuda", "jax": "cpu"}, tmp_path, ABOUT)}
    assert list(plan)[:6] == [
        "smoke-torch",
        "smoke-jax",
        "torch-bfloat16-eager",
        "jax-bfloat16-compiled",
        "torch-float32-eager",
        "jax-float32-compiled",
    ]
    assert len(plan) == 13
    assert list(plan)[-1] == "tune"
    assert plan["tune"].command[-2:] == ("--to", str(tmp_path / "tiles.toml"))
    assert sum(p.most for name, p in plan.items() if name.startswith("smoke")) <= 150
    assert {p.missing for name, p in plan.items() if "jax" in name} == {"no CUDA device for jax, which sees cpu"}
    assert not any(p.missing for name, p in plan.items() if "torch" in name and "suite" not in name)
    assert "tests/test_linear_torch.py" in plan["suite-torch"].command
    assert not any(word.endswith("_jax.py") for word in plan["suite-torch"].command)


def test_the_smoke_run_leaves_figures_on_a_bare_machine_and_a_second_one_measures_nothing(monkeypatch, tmp_path, bare):
    """Its real processes, on a CPU with sizes that take no time."""
    monkeypatch.setattr(gpu, "devices", lambda: {"torch": "cuda"})
    monkeypatch.setattr(gpu, "describe", lambda: MACHINE)
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    folder = tmp_path / "results" / "nvidia-h200"
    assert gpu.main(["smoke"], tmp_path, tiny=True) == 0
    groups, head = read_json(folder / "smoke-torch-rows.json")
    assert head["complete"]
    assert [(g.op, g.direction) for g in groups] == [(op, way) for op in smoke.MAIN for way in rows.PASSES]
    assert all(m.warm and not m.problem for g in groups for m in g.members)
    compared = json.loads((folder / "smoke-torch.json").read_text())
    assert compared["launched"] == ["relu_triton._relu_mask_kernel"]
    assert {row["way"] for row in compared["rows"]} == {"forward", "backward", "second"}
    assert gpu.main(["smoke-torch"], tmp_path, tiny=True) == 0
    assert (
        "0 groups to measure, 8 are there"
        in json.loads((folder / "parts.json").read_text())["parts"]["smoke-torch"]["tail"]
    )


def test_a_group_is_on_disk_before_the_next_one_starts_and_a_later_run_goes_on(tmp_path, monkeypatch):
    file, seen = tmp_path / "rows.json", []

    def work(send, asked, folder):
        seen.append((len(finished(file)), asked.done))
        for case in ("a", "b", "c"):
            if ("relu", case, "forward") not in asked.done:
                assert len(finished(file)) == len(asked.done) + (case == "b")
                send(("group", dataclasses.replace(GROUP, case=case)))
                if case == "b" and not asked.done:
                    raise KeyboardInterrupt

    def finished(file):
        return rows.finished(file, ABOUT)

    monkeypatch.setattr(rows, "work", work)
    with pytest.raises(KeyboardInterrupt):
        rows.rows(file, ABOUT, "torch", "float32", "eager", ["relu"])
    assert [g.case for g in finished(file)] == ["a", "b"]
    assert not read_json(file)[1]["complete"]
    groups = rows.rows(file, ABOUT, "torch", "float32", "eager", ["relu"])
    assert [g.case for g in groups] == ["a", "b", "c"]
    assert read_json(file)[1]["complete"]
    assert seen[1] == (2, {("relu", "a", "forward"), ("relu", "b", "forward")})
    assert rows.finished(file, ABOUT | {"source": "changed"}) == []


def test_smoke_launches_every_kernel_as_a_gpu_would():
    """By recording: with a GPU's sizes. Unknown classes are looked for by a kernel where looking would wait."""
    pytest.importorskip("torch")
    from gradlab.kernels.runtime.launch_triton import recording
    from gradlab.profiling.gpu import smoke_torch as extra

    with recording() as launches:
        for row in smoke._rows(side_of("torch"), extra, None):
            # Nothing is computed in a recording, so nothing can be right.
            assert not row.problem, row
    names = {extra._name(launch.jit) for launch in launches}
    assert extra.kernels() - names == {"class_range_triton._class_range_kernel"}


def test_smoke_says_what_is_wrong_what_fails_and_what_is_not_launched(monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    from gradlab.profiling.gpu import smoke_torch as extra

    rows = [
        smoke.Row("linear", "odd", "forward", 1e-3, 1e-6),
        smoke.Row("relu", "odd", "second", problem="E: x"),
    ]
    monkeypatch.setattr(smoke, "_rows", lambda *args: iter(rows))
    monkeypatch.setattr(extra, "kernels", lambda: {"a._lost_kernel"})
    assert not smoke.compared(tmp_path / "smoke.json", ABOUT, side_of("torch"), 60.0)
    out = capsys.readouterr().out
    assert "linear, odd, forward: off by 1.0e-03, allowed 1.0e-06\nrelu, odd, second: E: x\n" in out
    assert "2 passes of 2 ops, 2 wrong, 0 kernels\nnot launched: a._lost_kernel\n" in out


@pytest.mark.parametrize(
    ("got", "wanted", "error"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.2),
        ([1.0, np.nan], [1.0, 2.0], np.inf),
        ([1.0, 2.0], [1.0, np.nan], np.inf),
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([[1.0]], [1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_smokes_error(got, wanted, error):
    assert smoke._error(np.asarray(got), np.asarray(wanted)) == error


@pytest.mark.parametrize("side", SIDES)
def test_smoke_compares_a_case_on_every_side(side):
    pytest.importorskip(side)
    extra = importlib.import_module(f"gradlab.profiling.gpu.smoke_{side}")
    op = spec("linear")
    rows = list(smoke.of_case(side_of(side), extra, op.at(op.cases[1])))
    assert [row.way for row in rows] == ["forward", "backward", "second"]
    assert all(row.right for row in rows), rows


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
        [
            sys.executable,
            "-c",
            "from gradlab.profiling.gpu import run as gpu; gpu.devices = lambda: {'torch': 'cpu'}; raise SystemExit(gpu.main([]))",
        ],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
