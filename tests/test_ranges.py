"""NVTX ranges, received for real: a small tool in C is loaded into a process, and what reached it is read."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# NVTX's number for UTF-32 text and for a 64-bit integer.
DTYPES = {78: "U", 17: "i8"}


@dataclass
class Range:
    """A range as the tool got it, with those inside it."""

    domain: str
    category: str
    colour: str
    message: str
    payload: dict
    inside: list = field(default_factory=list)

    def flat(self):
        return [self, *(r for child in self.inside for r in child.flat())]

    def names(self):
        """Messages of the ranges, those inside in brackets."""
        return f"{self.message} [{', '.join(r.names() for r in self.inside)}]" if self.inside else self.message


@pytest.fixture(scope="module")
def listen(tmp_path_factory):
    """A function that runs Python text under the tool: (ranges at the top by thread, finished process)."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc, which builds the NVTX tool that the ranges are read with, is not installed")
    pytest.importorskip("nvtx")
    folder = tmp_path_factory.mktemp("nvtx")
    library = folder / "injection.so"
    build = ["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, ROOT / "tests/nvtx_injection.c"]
    subprocess.run(build, check=True)

    def run(code, *, on="1", tool=True, words=()):
        log = folder / "log"
        log.unlink(missing_ok=True)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NVTX_LOG": str(log), "GRADLAB_NVTX": on}
        env |= {"NVTX_INJECTION64_PATH": str(library)} if tool else {}
        command = [sys.executable, *words] if words else [sys.executable, "-c", code]
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return (read(log) if log.exists() else []), done

    return run


def read(log):
    """The ranges at the top of every thread, in the order in which they were opened."""
    domains, categories, sizes, entries, top, open_, spans = {}, {}, {}, {}, [], {}, {}
    outer = top

    def record(schema):
        """The NumPy dtype of a registered schema."""
        fields = entries[schema]
        if len(fields) == 1 and fields[0][1] in DTYPES:
            _, kind, length, _ = fields[0]
            return np.dtype(f"U{length}" if DTYPES[kind] == "U" else DTYPES[kind])
        names, kinds, offsets = zip(*((name, record(kind), offset) for name, kind, _, offset in fields), strict=True)
        return np.dtype({"names": names, "formats": kinds, "offsets": offsets, "itemsize": sizes[schema]})

    for line in log.read_text().splitlines():
        kind, *words = line.split("\t")
        if kind == "D":
            domains[words[0]] = words[1]
        elif kind == "C":
            categories[words[0], words[1]] = words[2]
        elif kind == "S":
            sizes[int(words[0])] = int(words[1])
        elif kind == "E":
            entries.setdefault(int(words[0]), []).append((words[1], *map(int, words[2:])))
        elif kind == "+":
            thread, domain, category, colour, message, schema, payload = words
            values = {}
            if payload:
                (row,) = np.frombuffer(bytes.fromhex(payload), record(int(schema)))
                values = {name: row[name].item() for name in row.dtype.names}
            new = Range(domains.get(domain, ""), categories.get((domain, category), ""), colour, message, values)
            stack = open_.setdefault(thread, [])
            (stack[-1].inside if stack else top).append(new)
            stack.append(new)
        elif kind == "[":
            # A range of the process holds what every thread does while it is open.
            spans[words[1]] = Range(domains.get(words[0], ""), "", "", words[2], {}, top := [])
            outer.append(spans[words[1]])
        elif kind == "]":
            spans.pop(words[1])
            top = outer
        else:
            last = open_[words[0]].pop()
            assert last.domain == domains.get(words[1], ""), "a range was closed in another domain"
    assert not any(open_.values()), "a range was left open"
    assert not spans
    return outer


TORCH = """
import nvtx
import torch
import gradlab.torch as lab

def section(name):
    return nvtx.annotate(name, domain="test")

x, w, b = (torch.randn(n, requires_grad=True) for n in ((8, 5), (3, 5), (3,)))
t = torch.arange(8) % 3
with section("forward"):
    y = lab.linear(x, w, b, activation="relu")
with section("backward"):
    y.sum().backward()
with section("thread"):
    import threading
    loss = lab.linear(x, w).sum()
    worker = threading.Thread(target=loss.backward)
    worker.start()
    worker.join()
with section("part"):
    lab.linear(x.detach(), w, b.detach()).sum().backward()
with section("second"):
    loss = lab.cross_entropy(lab.linear(x, w, b), t)
    (g,) = torch.autograd.grad(loss, x, create_graph=True)
    with section("here"):
        g.square().sum().backward()
with section("mapped"):
    torch.func.vmap(torch.func.grad(lambda r: lab.tanh(r).sum()))(x)
with section("refused"):
    try:
        lab.linear(x, w[:, :4], b)
    except ValueError as error:
        print(error)
with section("step"):
    p = torch.nn.Parameter(torch.ones(4, 6))
    p.grad = torch.ones(4, 6)
    lab.Adam([p]).step()

whole = torch.compile(lambda x: lab.linear(x, w, b, activation="relu").sum(), fullgraph=True, backend="aot_eager")
whole(x)
with section("compiled forward"):
    y = whole(x)
with section("compiled backward"):
    y.backward()
import gradlab
from gradlab.profiling.ranges import ranges
with section("off"), ranges.off():
    whole(x)
    lab.linear(x, w, b).sum().backward()
with section("on again"), gradlab.nvtx():
    lab.relu(x)
print(torch._dynamo.utils.counters["stats"]["unique_graphs"], "graphs")
"""


@pytest.fixture(scope="module")
def torch_ranges(listen):
    pytest.importorskip("torch")
    top, done = listen(TORCH)
    return {r.message: r for r in top if r.domain == "test"}, top, done


BACK = "linear backward [matmul_kernel backward, matmul_kernel backward, column_sum_kernel backward]"
SECOND = BACK.replace("backward", "second")


@pytest.mark.parametrize(
    ("section", "inside"),
    [
        ("forward", ["linear forward [matmul_kernel forward]"]),
        ("backward", [BACK]),
        ("thread", ["linear forward [matmul_kernel forward]"]),
        ("part", ["linear forward [matmul_kernel forward]", "linear backward [matmul_kernel backward]"]),
        ("mapped", ["tanh forward [tanh_kernel forward]", "tanh backward [slope_kernel backward]"]),
        ("refused", ["linear forward"]),
        ("step", ["adam_kernel forward"]),
        ("compiled forward", ["matmul_kernel forward"]),
        ("compiled backward", ["matmul_kernel backward", "matmul_kernel backward", "column_sum_kernel backward"]),
        ("off", []),
        ("on again", ["relu forward [relu_mask_kernel forward]"]),
    ],
)
def test_torch_opens_a_range_for_each_op_and_in_it_for_each_kernel(torch_ranges, section, inside):
    assert [r.names() for r in torch_ranges[0][section].inside] == inside


def test_backward_is_distinguished_from_second_also_for_rules_that_run_twice(torch_ranges):
    *first, second = torch_ranges[0]["second"].inside
    assert [r.message for r in first if "backward" in r.message] == ["cross_entropy backward", "linear backward"]
    assert all(r.category == "backward" for range_ in first[2:] for r in range_.flat())
    # The linear of the forward is run again: its kernels belong to the second pass now.
    assert [r.names() for r in second.inside][-1] == SECOND
    assert "second_backward_kernel second" in [r.message for r in second.flat()]
    assert {r.category for r in second.flat()[1:]} == {"second"}


def test_a_thread_of_its_own_has_its_backward(torch_ranges):
    sections, top, _ = torch_ranges
    elsewhere = [r for r in top if r.domain == "gradlab.torch" and r.category == "backward"]
    assert [r.names() for r in elsewhere] == [BACK.replace(", column_sum_kernel backward", "")]
    assert not [r for r in sections["thread"].flat() if "backward" in r.message]


def test_domain_category_and_colour(torch_ranges):
    colours = {"forward": "ff0072b2", "backward": "ffe69f00", "second": "ffcc79a7"}
    found = [r for top in torch_ranges[1] for r in top.flat() if r.domain != "test"]
    assert {r.category for r in found} == set(colours)
    for r in found:
        assert r.domain == "gradlab.torch"
        assert r.message.endswith(r.category)
        assert r.payload["pass"] == r.category
        assert r.colour == colours[r.category]


def test_a_payload_says_op_kernel_shapes_dtype_bytes_and_flops(torch_ranges):
    (op,) = torch_ranges[0]["forward"].inside
    M, K, N = 8, 5, 3
    assert op.payload == {
        "op": "linear",
        "kernel": "",
        "pass": "forward",
        "shapes": "input[8 5], weight[3 5], bias[3]",
        "dtype": "float32",
        "bytes": 4 * (M * K + K * N + N + M * N),
        "flops": 2 * M * K * N + M * N,
    }
    assert op.inside[0].payload == {
        "op": "linear",
        "kernel": "matmul_kernel",
        "pass": "forward",
        "shapes": "0[8 5], 1[5 3], 2[3], 3[8 3]",
        "dtype": "float32",
        "bytes": 4 * (M * K + K * N + N + M * N),
        "flops": 0,
    }
    (back,) = torch_ranges[0]["backward"].inside
    assert back.payload["flops"] == 4 * M * K * N + M * N
    # The cotangent of a sum is one number that is expanded: its kernel reads w, the mask y and dy, and writes dx.
    assert back.inside[0].payload["bytes"] == 4 * (1 + K * N + M * N + M * K)
    # Asked for one gradient of three, it says no FLOPs: the Spec's are those of all.
    assert torch_ranges[0]["part"].inside[1].payload["flops"] == 0
    # The backward of a mean is one rule, and says its FLOPs.
    losses = [r for r in torch_ranges[0]["second"].inside if r.message == "cross_entropy backward"]
    assert [r.payload["flops"] > 0 for r in losses] == [True]
    (step,) = torch_ranges[0]["step"].inside
    assert (step.payload["op"], step.payload["bytes"]) == ("adam", 4 * 4 * 24)
    # No op is open in a compiled graph: a kernel says the file it stands in.
    alone = torch_ranges[0]["compiled forward"].inside[0].payload
    assert alone == {**op.inside[0].payload, "op": "matmul"}


def test_an_error_stays_the_ops_own_and_ranges_do_not_recompile(torch_ranges):
    out = torch_ranges[2].stdout
    assert "linear: weight of shape [3, 4] is K = 4, wanted K = 5 like input's last axis" in out
    assert "1 graphs" in out


def test_a_thread_forward_beside_one_in_backward_is_forward():
    from gradlab.profiling.ranges.ranges import Ranges

    class Sink:
        seen: ClassVar = []

        def push(self, side, label):
            self.seen.append((threading.current_thread() is threading.main_thread(), label.message))

        def pop(self, side):
            pass

    def aside():
        with ranges.call("torch", "relu", aside, (), {}):
            pass

    ranges = Ranges(Sink())
    context = type("Context", (), {"needs_input_grad": ()})()
    with ranges.rule("torch", Ranges, context, ()), ranges.call("torch", "tanh", aside, (), {}):
        other = threading.Thread(target=aside)
        other.start()
        other.join()
    assert [seen for seen in Sink.seen if not seen[0]] == [(False, "relu forward")]
    assert (True, "tanh backward") in Sink.seen, "the control: in the thread of backward it is backward"


JAX = """
import jax
import jax.numpy as jnp
import nvtx
import gradlab.jax as lab

def section(name):
    return nvtx.annotate(name, domain="test")

x, w, b = jnp.ones((8, 5)), jnp.ones((5, 3)), jnp.ones(3)
images, taps = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 4))
loss = lambda x, w: lab.linear(x, w, activation="relu").sum()
with section("eager"):
    lab.linear(x, w, b)
with section("same"):
    lab.conv2d(images, taps)
with section("borders"):
    lab.max_pool2d(images, 2, padding=((0, 1), (0, 1)))
with section("step"):
    params = {"a": x, "b": w}
    lab.adam_step(params, params, lab.adam().init(params))
whole = jax.jit(loss)
whole(x, w)
with section("jit"):
    whole(x, w)
for name, fn in (("there", loss), ("back", jax.grad(loss)), ("second", jax.grad(lambda x, w: (jax.grad(loss)(x, w) ** 2).sum(), 1))):
    text = jax.jit(fn).lower(x, w).compile().as_text()
    names = [line.split('op_name="')[1].split('"')[0] for line in text.splitlines() if 'op_name="' in line]
    print(name, *sorted({part for name in names for part in name.split("/")}))
"""


@pytest.fixture(scope="module")
def jax_ranges(listen):
    pytest.importorskip("jax")
    top, done = listen(JAX)
    return {r.message: r for r in top if r.domain == "test"}, done


@pytest.mark.parametrize(
    ("section", "inside"),
    [
        ("eager", ["linear forward"]),
        ("same", ["conv2d forward"]),
        ("step", ["adam forward"]),
        # Inside a trace a host range would open once, and never again.
        ("jit", []),
    ],
)
def test_jax_opens_a_range_around_an_eager_call(jax_ranges, section, inside):
    found = jax_ranges[0][section].inside
    assert [r.names() for r in found] == inside
    assert {r.domain for r in found} <= {"gradlab.jax"}


def test_payloads_of_jax_count_in_its_own_axes(jax_ranges):
    sections = jax_ranges[0]
    assert sections["eager"].inside[0].payload["flops"] == 2 * 8 * 5 * 3 + 8 * 3
    images = sections["same"].inside[0].payload
    # "SAME" leaves 6 by 6 of 6 by 6; 4 filters of 3 * 3 * 3 taps.
    assert images["flops"] == 2 * 6 * 6 * 4 * (2 * 27 + 1)
    assert images["shapes"] == "x[2 6 6 3], kernel[3 3 3 4]"
    # The Spec has no borders that differ: no number is better than a wrong one.
    assert sections["borders"].inside[0].payload["flops"] == 0
    assert sections["step"].inside[0].payload["flops"] == 15 * (8 * 5 + 5 * 3)


def test_scopes_are_in_the_programs_names_forward_and_backward(jax_ranges):
    said = {way: parts for way, *parts in map(str.split, jax_ranges[1].stdout.splitlines())}
    assert all("gradlab_matmul_kernel" in said[way] for way in ("there", "back", "second"))
    assert "linear" in said["there"]
    assert "transpose(jvp(linear))" in said["back"]
    assert "transpose(jvp(transpose(jvp(linear))))" in said["second"]


def test_off_nothing_arrives(listen):
    pytest.importorskip("torch")
    small = "import torch, gradlab.torch as lab; lab.relu(torch.ones(3, requires_grad=True)).sum().backward()"
    assert [r.names() for r in listen(small)[0]], "the control: with ranges on something does"
    assert listen(small, on="0")[0] == []
    # Without a tool nothing is opened: the gates find no opener.
    listen("import gradlab; from gradlab.kernels.runtime import ranges; assert ranges.opener is None", tool=False)


WORDS = (
    "-m",
    "gradlab",
    "bench",
    "relu",
    "--side",
    "jax",
    "--case",
    "activations",
    "--mode",
    "eager",
    "--pass",
    "forward",
    "--budget",
    "0.01",
)


def test_bench_times_without_ranges_and_is_reported(listen):
    pytest.importorskip("jax")
    top, done = listen("", words=WORDS)
    assert top == []
    assert "GRADLAB_NVTX is set, but ranges are off while timing" in " ".join(done.stdout.split())


def test_what_nsys_and_ncu_are_told_to_look_at_is_there(listen):
    pytest.importorskip("torch")
    job = {
        "target": "linear",
        "side": "torch",
        "mode": "eager",
        "case": "odd",
        "tool": "nsys",
        "steps": 2,
        "out": "job.json",
    }
    top, _ = listen("", words=("-m", "gradlab.profiling.trace.op", json.dumps(job)))
    (process,) = top
    assert (process.domain, process.message) == ("gradlab.torch", "capture")
    (capture,) = process.inside
    assert (capture.domain, capture.message, capture.category) == ("gradlab.torch", "capture", "")
    assert [step.message for step in capture.inside] == ["step"] * 2
    for step in capture.inside:
        dispatch, wait = step.inside
        assert (dispatch.message, wait.names()) == ("dispatch", "wait")
        assert [r.names() for r in dispatch.inside] == ["linear forward [matmul_kernel forward]", BACK]


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    from gradlab.profiling.ranges import ranges

    monkeypatch.setitem(sys.modules, "nvtx", None)
    ranges.sink.cache_clear()
    with (
        pytest.raises(ModuleNotFoundError, match=r"^NVTX ranges need nvtx, which is not installed: pip install nvtx$"),
        ranges.nvtx(),
    ):
        pass
    monkeypatch.setenv("GRADLAB_NVTX", "1")
    ranges.from_environment()
    assert capsys.readouterr().err.count("\n") == 1
    ranges.sink.cache_clear()
