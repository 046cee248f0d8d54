"""`gradlab profile`: both sides on one clock, what the compilers did, and NVIDIA's tools by stand-ins on PATH."""

import importlib
import json
import logging
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gradlab import cli
from gradlab.profiling.trace import command, kernel, ncu, nsys, tools
from gradlab.profiling.trace.args import ProfileArgs
from gradlab.profiling.trace.merge import merged
from gradlab.profiling.trace.show import show

ROOT = Path(__file__).parents[1]


def gradlab(folder, *argv, path=None, code=0):
    """What `gradlab WORDS` prints, run in a folder, with another folder first on PATH."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    env["PATH"] = os.pathsep.join(map(str, (path, env["PATH"]) if path else (env["PATH"],)))
    done = subprocess.run(
        [sys.executable, "-m", "gradlab", *argv], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The output and the trace of one profile of both sides."""
    for framework in ("torch", "jax"):
        pytest.importorskip(framework)
    folder = tmp_path_factory.mktemp("profile")
    out = gradlab(folder, "profile", "linear", "--tool", "trace", "--case", "odd")
    return out, json.loads((folder / "profile" / "linear" / "trace.json").read_text())


def timed(trace, name, side):
    """The events of that name on a side: (start, end) in microseconds."""
    sides = {e["pid"]: e["args"]["name"].partition(":")[0] for e in trace["traceEvents"] if e["name"] == "process_name"}
    found = [e for e in trace["traceEvents"] if e.get("ph") == "X" and e["name"] == name and sides[e["pid"]] == side]
    return sorted((e["ts"], e["ts"] + e["dur"]) for e in found)


def test_a_trace_holds_both_sides_ranges_each_kernel_within_its_op(both):
    trace = both[1]
    ops, kernels = timed(trace, "linear backward", "torch"), timed(trace, "matmul_kernel backward", "torch")
    assert (len(ops), len(kernels)) == (3, 6)
    for start, end in kernels:
        assert any(a <= start and end <= b for a, b in ops)
    assert len(timed(trace, "step", "torch")) == len(timed(trace, "step", "jax")) == 3
    assert any(e.get("cat") == "xla" for e in trace["traceEvents"])


def test_both_sides_are_on_the_clock_of_the_date(both):
    trace = both[1]
    base = trace["baseTimeNanoseconds"] / 1e9
    began = trace["otherData"]["steps began, seconds since 1970"]
    for side in ("torch", "jax"):
        for (start, _), date in zip(timed(trace, "step", side), began[side], strict=True):
            # The process looked at the date just before; the traces' own clocks agree within a millisecond. Only a
            # pause of the process between the two could part them further.
            assert -1e-3 < base + start / 1e6 - date < 1
    # Each side ran while the other stood still.
    assert timed(trace, "step", "torch")[-1][1] < timed(trace, "step", "jax")[0][0]


def test_the_tables_say_time_counts_and_stages(both):
    out = " ".join(both[0].split())
    torch, jax = out.split(" jax, jit:")
    assert re.search(r"matmul_kernel forward 3 ", torch), "one a step"
    for side, text in (("torch", torch), ("jax", jax)):
        assert re.search(r"matmul_kernel forward \d+ [\d.]+ [mun]s [\d.]+%", text), side
        assert "interpreted" not in text.lower()
        assert "linear, case odd (M 5, K 7, N 3), float32, forward and backward" in text
    assert re.search(r"compile time: trace [\d.]+ \w+, lower [\d.]+ \w+, compile [\d.]+ \w+", jax)
    assert "recompilations: none" in jax
    assert "events on one clock" in jax


def test_a_workload_is_profiled_as_a_training_step(tmp_path):
    pytest.importorskip("optax")
    out = gradlab(tmp_path, "profile", "sigmoid-net", "--side", "jax", "--out", "here")
    assert "sigmoid-net, batches of 128, float32, one training step" in out
    assert "sgd_kernel forward" in out
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["trace.json"]


def test_graph_breaks_and_recompilations_of_torch_have_reasons():
    torch = pytest.importorskip("torch")
    from gradlab.profiling.trace import traced_torch

    def broken(x):
        y = x * 2
        if y.sum() > 0:
            y = y + 1
        return y.sin()

    torch._dynamo.reset()
    with traced_torch.Compilation() as compilation:
        torch.compile(lambda x: x + 1, backend="aot_eager")(torch.ones(3))
        found = compilation.found()
    assert (found["breaks"], found["recompiled"]) == ([], []), "the control: a whole graph has none"
    assert found["stages"]["dynamo"] > 0
    with traced_torch.Compilation() as compilation:
        compiled = torch.compile(broken, backend="aot_eager")
        for n in (3, 4):
            compiled(torch.ones(n))
        found = compilation.found()
    assert [count for _, count in found["breaks"]] == [2]
    # torch 2.11 does not quote the line.
    assert found["breaks"][0][0] in ("Data-dependent branching", "Data-dependent branching (if y.sum() > 0:)")
    assert any("size mismatch at index 0. expected 3, actual 4" in reason for reason, _ in found["recompiled"])
    assert found["stages"]["AOTAutograd"] > 0
    torch._dynamo.reset()


def test_recompilations_of_jax_are_those_after_the_warm_up():
    jax = pytest.importorskip("jax")
    from gradlab.profiling.trace import traced_jax

    before = jax.config.jax_explain_cache_misses
    try:
        f = jax.jit(lambda x: x * 3 + 1)
        with traced_jax.Compilation() as compilation:
            f(jax.numpy.ones(3))
            compilation.warm()
            f(jax.numpy.ones(3))
            assert compilation.found()["recompiled"] == [], "the control: the same shape is not compiled again"
            f(jax.numpy.ones(4))
            found = compilation.found()
    finally:
        jax.config.update("jax_explain_cache_misses", before)
    assert set(found["stages"]) == {"trace", "lower", "compile"}
    assert found["recompiled"]
    assert any("float32[4]" in reason or "f32[4]" in reason for reason, _ in found["recompiled"])
    assert not any(str(Path(__file__).parent) in reason for reason, _ in found["recompiled"])


def test_a_reason_of_jax_is_whole_wherever_the_file_lies():
    pytest.importorskip("jax")
    from gradlab.profiling.trace import traced_jax

    said = f"TRACING CACHE MISS at /{'long/' * 100}a.py:3:12 (f):\n  different input types:\n  * at x, now f32[4]"
    compilation = traced_jax.Compilation()
    compilation._warm, compilation._compiled = True, 1
    compilation.emit(logging.LogRecord("jax", logging.WARNING, "", 0, said, None, None))
    ((reason, _),) = compilation.found()["recompiled"]
    assert reason == "TRACING CACHE MISS at a.py:3:12 (f): different input types: * at x, now f32[4]"


def test_time_of_its_own_leaves_out_what_lies_inside():
    pytest.importorskip("jax")
    from gradlab.profiling.trace.traced_jax import names, self_times

    events = [("while", 0, 100, {}), ("dot", 10, 30, {}), ("add", 15, 5, {}), ("dot", 50, 30, {}), ("copy", 100, 7, {})]
    assert sorted((name, own) for name, own, _ in self_times(events)) == [
        ("add", 5),
        ("copy", 7),
        ("dot", 25),
        ("dot", 30),
        ("while", 40),
    ]
    program = """
      %dot.7 = f32[2]{0} dot(%a, %b), metadata={op_name="jit(f)/transpose(jvp(linear))/gradlab_matmul_kernel/dot"}
      ROOT ynn_fusion.1 = f32[2]{0} fusion(%a), metadata={op_name="jit(f)/linear/gradlab_matmul_kernel/add"}
      %dot.8 = f32[2]{0} dot(%a), metadata={op_name="jit(f)/transpose(jvp(transpose(jvp(linear))))/gradlab_matmul_kernel/dot"}
      %other = f32[2]{0} add(%a, %b), metadata={op_name="jit(f)/add"}"""
    assert names(program) == {
        "dot.7": "matmul_kernel backward",
        "ynn_fusion.1": "matmul_kernel forward",
        "dot.8": "matmul_kernel second",
    }


def test_merged_processes_keep_apart_and_time_starts_at_the_first_event():
    def of(pid, ts):
        return {
            "events": [
                {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": "python"}},
                {"ph": "X", "name": "a", "pid": pid, "tid": 1, "ts": ts, "dur": 2.0},
            ]
        }

    trace = json.loads(merged({"jax": of(7, 1.7e15 + 5.25), "torch": of(7, 1.7e15 + 1.0)}, {"cpu": "some"}))
    events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert [e["ts"] for e in events] == [0.0, 4.25]
    assert events[0]["pid"] != events[1]["pid"]
    named = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert named == {"torch: python", "jax: python"}
    assert trace["otherData"]["cpu"] == "some"


# What each tool prints: the columns and the lines around them are those of its manual.
NSYS = """#!{python}
import subprocess, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    print("nsys", *words[: words.index(sys.executable)] if sys.executable in words else words, file=log)
if words[0] == "profile":
    (out,) = [w.partition("=")[2] for w in words if w.startswith("--output=")]
    open(out + ".nsys-rep", "w").close()
    sys.exit(subprocess.run(words[words.index(sys.executable):]).returncode)
print("Generating SQLite file torch.sqlite from torch.nsys-rep")
print("Processing [torch.sqlite] with [cuda_gpu_kern_sum.py]...")
print()
print("Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name")
print("80.0,4000,2,2000.0,2000.0,1900,2100,100.0,_relu_mask_kernel")
print('20.0,1000,1,1000.0,1000.0,1000,1000,0.0,"void at::native::fill<int, 4>(int, float*)"')
"""
NCU = """#!{python}
import subprocess, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    print("ncu", *words[: words.index(sys.executable)] if sys.executable in words else words, file=log)
if "--import" not in words:
    open(words[words.index("--export") + 1] + ".ncu-rep", "w").close()
    print("==PROF== Connected to process 1")
    sys.exit(subprocess.run(words[words.index(sys.executable):]).returncode)
head = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size",
        "Device", "CC", "dram__bytes.sum", "dram__throughput.avg.pct_of_peak_sustained_elapsed",
        "gpu__time_duration.sum", "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed"]
rows = [head, [""] * 11 + ["byte", "%", "ns", "%"]]
about = ["1", "python", "127.0.0.1", "gradlab_relu_mask_kernel", "1", "7", "(128, 1, 1)", "(8, 1, 1)", "0", "9.0"]
rows += [["0", *about, "3,000,000", "90", "1,000", "0"], ["1", *about, "1,000,000", "30", "3,000", "n/a"]]
for row in rows:
    print(",".join('"' + cell + '"' for cell in row))
"""


def stand_in(folder, name, text):
    """An executable of that name; gives the file that it notes its words in."""
    log = folder / f"{name}.log"
    path = folder / name
    path.write_text(text.format(python=sys.executable, log=str(log)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return log


def test_nsys_is_run_on_the_steps_and_read_back(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("nvtx")
    log = stand_in(tmp_path, "nsys", NSYS)
    out = gradlab(tmp_path, "profile", "relu", "--side", "torch", "--tool", "nsys", "--case", "odd", path=tmp_path)
    first, second = log.read_text().splitlines()
    for word in ("--capture-range=nvtx", "--nvtx-capture=capture@gradlab.torch", "--capture-range-end=stop"):
        assert word in first
    assert second.startswith("nsys stats --report cuda_gpu_kern_sum --format csv")
    assert second.endswith("profile/relu/torch.nsys-rep")
    assert "$ nsys profile --trace=cuda,nvtx" in out
    # Of 37 elements each step holds x and y, then dy, y and dx: 3 * 5 * 37 * 4 bytes in the stand-in's 4 us.
    assert re.search(r"_relu_mask_kernel +2 +4 us +80.0% +0.555 +- +-", out)
    assert re.search(r"at::native::fill<int, 4> +1 +1 us +20.0% +- +- +-", out)
    assert "a GPU's profiler sees none of them" in " ".join(out.split())


def test_ncu_is_run_on_the_steps_and_read_back(tmp_path):
    pytest.importorskip("jax")
    pytest.importorskip("nvtx")
    log = stand_in(tmp_path, "ncu", NCU)
    out = gradlab(tmp_path, "profile", "relu", "--side", "jax", "--tool", "ncu", "--case", "odd", path=tmp_path)
    first, second = log.read_text().splitlines()
    assert "--nvtx --nvtx-include gradlab.jax@capture --clock-control none --metrics" in first
    assert second == "ncu --import profile/relu/jax.ncu-rep --csv --page raw --print-units base"
    # Two launches: 4 MB in 4 us; percents weighted by time, 90 for a quarter and 30 for the rest; n/a is left out.
    assert re.search(r"gradlab_relu_mask_kernel +2 +4 us +100.0% +1000 +45.0 +0.0", out)


def test_nsys_knows_bytes_from_the_ranges_and_the_peak_from_a_copy():
    text = "Time (%),Total Time (ns),Instances,Name\n100.0,2000,2,_matmul_kernel\n"
    label = {"kernel": "matmul_kernel", "bytes": 3000}
    (found,) = nsys.read(text, {"labels": [[label, 2], [{"kernel": "", "bytes": 9}, 1]], "copy": 6e9})
    assert found == kernel.Kernel("_matmul_kernel", 2, 2e-6, 6000.0, 50.0, None)
    assert nsys.read("SKIPPED: torch.sqlite does not contain CUDA kernel data.", {"labels": []}) == []
    assert ncu.read("==WARNING== No kernels were profiled.\n", {}) == []
    with pytest.raises(ValueError, match="tool printed no CSV, wanted a table with the column"):
        nsys.read("something else", {"labels": []})


def test_a_missing_tool_says_what_to_install_and_what_was_done_instead(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, product in (("nsys", "Nsight Systems"), ("ncu", "Nsight Compute")):
        tool, why = tools.chosen(name, True)
        assert tool == "trace"
        assert why.startswith(f"{name} is not on PATH: install {product}")
        assert why.endswith("using the trace instead")
    assert tools.chosen("auto", False) == ("trace", "")
    assert tools.chosen("auto", True)[1].startswith("neither ncu nor nsys is on PATH")
    stand_in(tmp_path, "nsys", NSYS)
    pytest.importorskip("nvtx")
    assert tools.chosen("auto", True) == ("nsys", "")
    stand_in(tmp_path, "ncu", NCU)
    assert tools.chosen("auto", True) == ("ncu", "")
    assert tools.chosen("trace", True) == ("trace", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tools.chosen("ncu", True) == (
        "trace",
        "ncu finds the steps by NVTX: pip install nvtx; using the trace instead",
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["conv9d"], "profile: target is 'conv9d', wanted an op or a workload: adam, "),
        (["relu", "--side", "numpy"], "side: name is 'numpy', wanted one of torch, jax"),
        (["relu", "--mode", "fast"], "profile: mode is 'fast', wanted one of eager, compile, jit"),
        (
            ["relu", "--side", "torch", "--mode", "jit"],
            "profile: mode is 'jit', wanted eager or compile with --side torch",
        ),
        (["relu", "--mode", "compile"], "profile: mode is 'compile', wanted jit or eager with --side jax"),
        (["relu", "--tool", "vtune"], "profile: tool is 'vtune', wanted one of auto, trace, nsys, ncu"),
        (["relu", "--case", "none"], "profile: case is 'none', wanted one of '"),
        (["digits-mlp", "--case", "odd"], "profile: case is 'odd', wanted none: digits-mlp is a workload"),
        (["digits-mlp", "--side", "jax", "--mode", "eager"], "profile: mode is 'eager', wanted jit: digits-mlp's"),
        (["mnist-mlp"], "profile: target is 'mnist-mlp', which needs mnist.npz"),
        (["relu", "--out", "README.md"], "profile: --out is README.md, wanted "),
    ],
)
def test_bad_arguments_are_one_line(monkeypatch, capsys, argv, message):
    for framework in ("torch", "jax"):
        pytest.importorskip(framework)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["gradlab", "profile", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith(f"gradlab: {message}")
    assert err.count("\n") == 1


def test_a_process_that_fails_is_one_line_and_leaves_nothing(tmp_path, capsys):
    out = tmp_path / "there" / "deep"
    asked = ProfileArgs("relu", {"torch": "eager"}, "trace", out)
    assert command.profile(asked, "gradlab.profiling.trace.nowhere", Console(quiet=True)) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert err.startswith("gradlab: profile: relu on torch, eager: ")
    assert "No module named gradlab.profiling.trace.nowhere" in err
    assert not out.exists()


def test_ctrl_c_ends_the_processes_and_exits_with_130(tmp_path, monkeypatch, capsys):
    ended = []

    def interrupted(self, job):
        ended.append(self._process)
        raise KeyboardInterrupt

    child = importlib.import_module("gradlab.profiling.trace.child")
    monkeypatch.setattr(child.Child, "ready", interrupted)
    asked = ProfileArgs("relu", {"torch": "eager"}, "trace", tmp_path / "out")
    assert command.profile(asked, "gradlab.profiling.trace.op", Console(quiet=True)) == 130
    assert ended[0].poll() is not None
    assert "interrupted" in capsys.readouterr().err


def test_a_device_column_stands_where_a_device_has_worked(capsys):
    found = {
        "job": {"mode": "compile", "steps": 3},
        "what": "linear",
        "steps": [[1e-3, 2e-3, 0.0]],
        "labels": [],
        "interpreted": False,
        "device": "cuda",
        "stages": {"dynamo": 1.5},
        "breaks": [["x" * 9, 2]],
        "recompiled": [[str(i), 1] for i in range(7)],
        "rows": [
            {"name": "_matmul_kernel", "count": 3, "seconds": 0.0, "device": 3e-6},
            {"name": "aten::mm", "count": 3, "seconds": 9.0, "device": 1e-6},
        ],
    }
    show("torch", found, Console(width=80))
    out = capsys.readouterr().out
    assert "on the device" in out
    assert re.search(r"_matmul_kernel +3 +3 us +75.0%", out)
    assert "graph breaks: 2\n  2 x xxxxxxxxx\n" in out
    assert "recompilations: 7" in out
    assert "and 2 other reasons" in out
    assert "Interpreted" not in out
