"""The benchmark: members that are proven before they are timed, what is written, what an error becomes."""

import dataclasses
import io
import json
import math
import multiprocessing
from contextlib import nullcontext

import numpy as np
import pytest
from rich.console import Console

from gradlab.autodiff.frameworks.side import SIDES, as_tuple
from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.base.processes import run_in_process
from gradlab.kernels.spec import Case, spec, specs
from gradlab.profiling.bench import command as bench
from gradlab.profiling.bench import peers, worker
from gradlab.profiling.bench.ceilings import Ceilings
from gradlab.profiling.bench.command import BenchArgs
from gradlab.profiling.bench.file import COLUMNS, SCHEMA, read_json
from gradlab.profiling.bench.measure import measure
from gradlab.profiling.bench.peak import peak_bytes
from gradlab.profiling.bench.row import BACKWARD, BOTH, COMPILED, EAGER, FORWARD, GRADLAB, INTERPRETED, NATIVE, PASSES
from gradlab.profiling.bench.subject import BenchSubject
from gradlab.profiling.bench.sweep import scaled
from gradlab.profiling.bench.timers import timers
from gradlab.profiling.bench.watch import Watch
from gradlab.profiling.native.native import Native, native, natives

TINY = {
    "adam": Case("tiny", {"E": 9}, {"step": 10}, use="bench"),
    "cross_entropy": Case("tiny", {"M": 4, "V": 7}, use="bench"),
    "linear": Case("tiny", {"M": 5, "K": 7, "N": 3}, {"activation": "relu"}, use="bench"),
    "relu": Case("tiny", {"E": 37}, use="bench"),
}


@pytest.fixture
def tiny(monkeypatch):
    """Every op with one tiny case; ceilings that cost nothing."""
    first = {name: dataclasses.replace(op.cases[0], use="bench") for name, op in specs().items()}
    small = {name: dataclasses.replace(op, cases=((first | TINY)[name],)) for name, op in specs().items()}
    for module in (bench, worker):
        monkeypatch.setattr(module, "spec", lambda name: small[spec(name).name])
    monkeypatch.setattr(bench, "specs", lambda: small)
    monkeypatch.setattr(worker, "Ceilings", Flat)


class Flat:
    """Ceilings that nothing reaches."""

    def __init__(self, *args):
        pass

    def bandwidth(self, size):
        return 1e15

    def rate(self):
        return 1e15


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=80, no_color=True)


def printed(console):
    return " ".join(console.file.getvalue().split())


def here(name, work, *args, on_message, env):
    """`run_in_process` in this process."""
    return work(on_message, *args)


def run(console, **jobs):
    jobs = {"ops": (), "sides": SIDES, "modes": (EAGER,), "passes": (FORWARD, BOTH), "budget": 0.02} | jobs
    return bench.run(BenchArgs(**jobs), console, here)


def plant(monkeypatch, side, op, fn):
    monkeypatch.setitem(natives(side).NATIVE, op, Native("planted", fn))


def subject_of(op, side, dtype="float32", seed=3):
    return BenchSubject(dataclasses.replace(spec(op), cases=(TINY[op],)), TINY[op], side_of(side), dtype, seed)


@pytest.mark.parametrize("side", SIDES)
def test_every_op_has_a_native_on_both_sides(side):
    assert set(natives(side).NATIVE) == set(specs())
    with pytest.raises(ValueError, match=r"native: op is 'nothing', wanted"):
        native(side, "nothing")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("op", specs())
def test_natives_and_peers_compute_the_op(op, side):
    s, others = side_of(side), peers.peers(side, op, "cpu")
    assert list(others) == (["optax"] if (op, side) in OPTAX else [])
    for case in spec(op).select("check"):
        arrays, options = spec(op).at(case).make(), spec(op).at(case).options
        for name, fn in (("native", native(side, op).fn), *((n, p.fn) for n, p in others.items())):
            if name == "optax" and (
                "p" in arrays or (op == "cross_entropy" and ("a" in arrays or "softcap" in options))
            ):
                with pytest.raises(TypeError, match="wanted none"):
                    fn(*(s.put(a, "float32") for a in arrays.values()), **options)
                continue
            with s.double(), np.errstate(invalid="ignore"):
                got = as_tuple(fn(*(s.put(a, "float64") for a in arrays.values()), **options))
                for value, wanted in zip(got, as_tuple(spec(op).reference(*arrays.values(), **options)), strict=True):
                    # optax takes the powers of its rates in float32.
                    rtol = 1e-4 if op == "adam" else 1e-10
                    np.testing.assert_allclose(s.take(value), wanted, rtol=rtol, atol=1e-10)


OPTAX = {("mse_loss", "jax"), ("binary_cross_entropy_with_logits", "jax"), ("cross_entropy", "jax")}


def test_a_peer_is_there_where_it_is_installed_and_has_a_device(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.peers("torch", "cross_entropy", "cuda") == {}
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name)
    assert list(peers.peers("torch", "cross_entropy", "cuda")) == ["FlagGems", "Liger-Kernel"]
    assert peers.peers("torch", "cross_entropy", "cpu") == {}
    assert peers.peers("torch", "nothing", "cuda") == {}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("direction", PASSES)
def test_half_precision_is_proven_against_float32(side, direction):
    subject = subject_of("linear", side, "bfloat16")
    value = subject.call(GRADLAB, EAGER, direction)()
    assert subject.difference(value, direction) == ""
    (wanted,) = subject._wanted.values()
    assert {str(a.dtype).removeprefix("torch.") for a in wanted} == {"float32"}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", [EAGER, COMPILED])
def test_backward_alone_is_called_again_and_again(side, mode):
    subject = subject_of("linear", side)
    for implementation in (GRADLAB, NATIVE):
        call = subject.call(implementation, mode, BACKWARD)
        first, second = (tuple(map(side_of(side).take, call())) for _ in range(2))
        assert subject.difference(call(), BACKWARD) == ""
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("side", SIDES)
def test_a_group_has_both_modes_a_repeated_native_and_their_costs(side, tmp_path):
    with Watch("cpu") as watch, natives(side).fresh(str(tmp_path)):
        group = measure(subject_of("relu", side), BOTH, (EAGER, COMPILED), 0.02, Flat(), watch)
    assert [m.name for m in group.members] == ["gradlab eager", "native eager", "gradlab compiled", "native compiled"]
    # Compilers kept what they made where they were told to, and nowhere else.
    assert any(p.is_file() for p in tmp_path.rglob("*"))
    # The twin was timed, not copied.
    assert group.repeated_native != group.members[1].warm
    assert group.noise > 0
    assert all(m.problem == "" for m in group.members), group.members
    for member in group.members:
        assert len(member.warm) == len(group.repeated_native) >= 6
        assert min(member.warm) > 0
        assert member.first_call > 0
        assert member.cached_call > 0
        assert not member.interpreted
        assert group.verdict(member) != INTERPRETED
    # The result and the gradient, 37 floats each, at least; jax tells of programs only.
    peaks = {m.name: m.peak_bytes for m in group.members}
    assert peaks["native compiled"] >= 148
    assert (peaks["native eager"] is None) == (side == "jax")
    ratio = group.ratio(group.members[0])
    assert ratio.low <= ratio.median <= ratio.high
    assert group.ratio(group.members[1]) is None


def test_torchs_peak_counts_what_is_there_at_once():
    import torch

    if torch.cuda.is_available():
        pytest.skip("CUDA's allocator rounds up")
    x, side = torch.zeros(1000), side_of("torch")
    assert peak_bytes(side, lambda: -x) == 4000
    assert peak_bytes(side, lambda: (-x).neg()) == 8000
    assert peak_bytes(side, lambda: [(-x).sum() for _ in range(5)]) in range(4004, 4100)


@pytest.mark.parametrize("side", SIDES)
def test_ceilings_are_measured(side):
    found = Ceilings(side_of(side), "float32", timers(side_of(side))["warm"], tiny=True)
    # Beyond a megabyte a second, below what any machine has.
    assert 1e6 < found.bandwidth(2**18) < 1e14
    assert found.bandwidth(2**30) == found.bandwidth(2**20)
    assert 1e6 < found.rate() < 1e16


def test_groups_of_both_sides(tiny, console, tmp_path):
    path, table, page = (tmp_path / f"groups.{kind}" for kind in ("json", "csv", "md"))
    files = {"json": path, "csv": table, "markdown": page}
    assert bench.run(BenchArgs(("linear",), SIDES, modes=(EAGER,), budget=0.02, **files), console, here) == 0
    groups, head = read_json(path)
    assert head["schema"] == SCHEMA
    assert head["complete"] is True
    assert head["dtype"] == "float32"
    assert head["machine"]["python"]
    assert [(g.side, g.direction) for g in groups] == [(side, way) for side in SIDES for way in PASSES]
    for group in groups:
        assert all(m.problem == "" for m in group.members)
        assert {m.label for m in group.members} == {f"gradlab.{group.side}", native(group.side, "linear").label}
        assert group.words == "M 5, K 7, N 3"
    work = {g.direction: (g.flops, g.bytes) for g in groups}
    assert work[FORWARD] == (2 * 5 * 7 * 3 + 5 * 3, 4 * (35 + 21 + 3 + 15))
    assert work[BACKWARD] == (4 * 5 * 7 * 3 + 5 * 3, 4 * (35 + 21 + 3 + 15 + 35 + 21 + 3))
    assert work[BOTH] == tuple(a + b for a, b in zip(work[FORWARD], work[BACKWARD], strict=True))
    lines = table.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 1 + 6 * 2
    text = page.read_text()
    assert f"- python: {head['machine']['python']}" in text
    assert sum(line.startswith("| linear | ") for line in text.splitlines()) == 6 * 2
    # Both sides had the same numbers.
    assert {g.seed for g in groups} == {head["seed"]}


def test_json_is_plain_and_another_file_is_reported(tiny, console, tmp_path):
    path = tmp_path / "groups.json"
    run(console, ops=("relu",), sides=("torch",), dtype="float64", json=path)
    document = json.loads(path.read_text())
    assert set(document) == {"kind", "schema", "machine", "dtype", "precision", "seed", "complete", "groups"}
    assert all(isinstance(s, float) for s in document["groups"][0]["members"][0]["warm"])
    for text, said in (
        ("[]", "is JSON of another kind, wanted a benchmark of gradlab"),
        ("{", "is no JSON, wanted a benchmark of gradlab"),
        ('{"kind": "gradlab benchmark", "schema": 1}', "is a benchmark of schema 1"),
        ('{"kind": "gradlab benchmark", "schema": 2, "groups": [{"op": 1}]}', "has groups that cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_json(path)
    with pytest.raises(ValueError, match=r"--compare is .*, wanted a file that can be read"):
        read_json(tmp_path / "missing.json")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("factor", [1 + 1e-3, float("nan")])
def test_wrong_results_are_caught(tiny, console, tmp_path, monkeypatch, side, factor):
    # What is wrong is found whichever of the two it is: here the native.
    right = native(side, "relu").fn
    plant(monkeypatch, side, "relu", lambda x: right(x) * factor)
    path = tmp_path / "groups.json"
    assert run(console, ops=("relu",), sides=(side,), json=path) == 1
    forward, both = read_json(path)[0]
    # The native is what the others are held against; one that is not even itself is wrong too.
    assert forward.members[0].problem == both.members[0].problem == "WRONG"
    assert forward.members[0].note.startswith("y is off by")
    assert both.members[0].note.startswith("dx is off by")
    assert not forward.members[0].warm
    assert f"WRONG: relu on {side}, tiny, float32, forward, gradlab eager: y is off by" in printed(console)


def test_wrong_shape_dtype_and_zeros_are_caught():
    import torch

    subject = subject_of("relu", "torch")
    right = subject.call(GRADLAB, EAGER, FORWARD)()
    assert subject.difference(right, FORWARD) == ""
    assert subject.difference(right[1:], FORWARD) == "y is float32 [36], wanted float32 [37]"
    assert subject.difference(right.double(), FORWARD) == "y is float64 [37], wanted float32 [37]"
    assert "off by" in subject.difference(torch.zeros_like(right), FORWARD)


def test_an_error_is_a_member_and_the_rest_goes_on(tiny, console, monkeypatch, tmp_path):
    path = tmp_path / "groups.json"

    def fails(x):
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(peers, "peers", lambda *a: {})
    from gradlab.profiling.bench import subject

    monkeypatch.setattr(subject, "peers", lambda *a: {"broken": Native("broken.fn", fails, nullcontext)})
    # A peer's failure is said, and is not the lab's; a native's is.
    assert run(console, ops=("relu",), sides=("torch",), passes=(FORWARD,), json=path) == 0
    assert "FAILED: relu on torch, tiny, float32, forward, broken eager: RuntimeError: out of luck" in printed(console)
    (group,) = read_json(path)[0]
    assert [m.problem for m in group.members] == ["", "", "FAILED"]
    assert group.members[0].warm
    plant(monkeypatch, "torch", "relu", fails)
    assert run(console, ops=("relu",), sides=("torch",), passes=(FORWARD,)) == 1


def test_interrupt_keeps_the_finished_groups(tiny, console, tmp_path):
    path = tmp_path / "groups.json"

    def stops(name, work, *args, on_message, env):
        def hears(message):
            on_message(message)
            if message[0] == "group":
                raise KeyboardInterrupt

        return work(hears, *args)

    jobs = BenchArgs(("linear", "relu"), ("torch",), modes=(EAGER,), passes=(FORWARD,), budget=0.02, json=path)
    assert bench.run(jobs, console, stops) == 130
    groups, head = read_json(path)
    assert [g.op for g in groups] == ["linear"]
    assert head["complete"] is False
    assert "linear on torch" in printed(console)
    assert "interrupted: the 1 groups above are finished" in printed(console)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float8"}, "dtype is 'float8', wanted one of float64, float32, float16, bfloat16"),
        ({"ops": ("relo",)}, "op: name is 'relo', wanted one of adam"),
        ({"sides": ("numpy",)}, "side: name is 'numpy'"),
        ({"budget": 0.0}, "budget is 0.0, wanted"),
        ({"budget": math.nan}, "budget is nan, wanted"),
        ({"modes": ("fast",)}, "mode is 'fast', wanted one of eager, compiled"),
        ({"passes": ("there",)}, "pass is 'there', wanted one of forward, backward"),
        ({"sizes": "E=8"}, "sizes are 'E=8', wanted none without a single op and no case"),
        ({"ops": ("relu",), "sizes": "E=8", "case": "large"}, "wanted none without a single op"),
        ({"ops": ("linear",), "sizes": "M=8 Q=3"}, "sizes are 'M=8 Q=3' with axis 'Q', wanted one of M, K, N"),
        ({"ops": ("linear",), "sizes": "M=8x"}, "with 'M=8x', wanted M= and a whole number of at least 1"),
        ({"ops": ("linear",), "sizes": "M"}, "with 'M', wanted M="),
        ({"ops": ("linear",), "sizes": "M=0"}, "with 'M=0', wanted M="),
        ({"ops": ("conv2d",), "sizes": "R=99"}, "which make P = "),
        ({"case": "circle"}, "case is 'circle', wanted one of perceptron"),
    ],
)
def test_errors_of_the_user(console, change, message):
    with pytest.raises(ValueError, match=message):
        run(console, **change)
    assert printed(console) == ""


def test_files_that_cannot_be_written_or_read_are_reported_before_the_work(console, tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "groups.json"):
        for kind in ("json", "csv", "markdown"):
            with pytest.raises(ValueError, match="wanted a file in a folder that exists"):
                run(console, **{kind: path})
    with pytest.raises(ValueError, match=r"--compare is .*, wanted a file that can be read"):
        run(console, base=tmp_path / "missing.json")
    assert printed(console) == ""


def test_a_case_of_cuda_alone_is_reported(console):
    with pytest.raises(ValueError, match=r"case is 'transformer', which runs on CUDA only"):
        run(console, ops=("relu",), sides=(), case="transformer")


def test_other_sizes_are_timed(tiny, console, tmp_path):
    path = tmp_path / "groups.json"
    assert run(console, ops=("linear",), sides=("torch",), passes=(FORWARD,), sizes="M=9, N=2", json=path) == 0
    (group,) = read_json(path)[0]
    assert (group.case, group.words) == ("M=9 N=2", "M 9, K 7, N 2")


def test_a_process_that_ends_is_a_line_and_the_other_side_goes_on(tiny, console, tmp_path):
    path = tmp_path / "groups.json"

    def dies(name, work, jobs, *args, on_message, env):
        if jobs.side == "torch":
            raise RuntimeError("bench, torch: ended with exit code -9")
        return work(on_message, jobs, *args)

    jobs = BenchArgs(("relu",), SIDES, modes=(EAGER,), passes=(FORWARD,), budget=0.02, json=path)
    assert bench.run(jobs, console, dies) == 1
    assert "bench, torch: ended with exit code -9" in printed(console)
    groups, head = read_json(path)
    assert [g.side for g in groups] == ["jax"]
    assert head["complete"] is False


@pytest.mark.parametrize("side", SIDES)
def test_data_follows_from_the_seed(side):
    first, same, other = (subject_of("linear", side, seed=seed) for seed in (3, 3, 4))
    for a, b, c in zip(first.arrays, same.arrays, other.arrays, strict=True):
        for x, y, z in zip(*(map(side_of(side).take, arrays) for arrays in (a, b, c)), strict=True):
            assert np.array_equal(x, y)
            assert not np.array_equal(x, z)
            assert np.all(x != 0)


def test_large_cases_are_for_cuda_alone():
    for device, largest in (("cpu", "bench"), ("cuda", "bench gpu")):
        assert worker.cases(spec("linear"), device)[-1].use == largest


@pytest.mark.parametrize("op", specs())
def test_a_sweep_grows_to_the_largest_case(op):
    case = spec(op).select("bench")[-1]
    points = list(scaled(spec(op), case))
    assert points[-1] == (case, 1.0)
    assert len(points) >= 4
    work = [spec(op).at(c).bytes("float32")["forward"] for c, _ in points]
    assert work == sorted(set(work))
    # Every size is one that the op can draw.
    assert spec(op).at(points[0][0]).make()


def test_a_sweep_is_measured(tiny, console, tmp_path):
    path = tmp_path / "groups.json"
    assert run(console, ops=("relu",), sides=("torch",), passes=(FORWARD,), sweep=True, json=path) == 0
    groups, _ = read_json(path)
    assert [g.sizes["E"] for g in groups] == [2, 4, 9, 18, 37]
    assert [g.swept for g in groups] == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]


def _sends(send, n):
    import os

    for i in range(n):
        send(i)
    return os.environ["SAID"], multiprocessing.current_process().name


def _fails(send):
    send("on the way")
    raise RuntimeError("no\nluck")


def _dies(send):
    import os

    os._exit(3)


def test_work_elsewhere_sends_messages_and_its_errors_are_one_line():
    on_message = []
    said, name = run_in_process("work", _sends, 3, on_message=on_message.append, env={"SAID": "yes"})
    assert (on_message, said) == ([0, 1, 2], "yes")
    assert name != multiprocessing.current_process().name
    with pytest.raises(RuntimeError, match=r"^work: RuntimeError: no$"):
        run_in_process("work", _fails, on_message=on_message.append)
    assert on_message[-1] == "on the way"
    with pytest.raises(RuntimeError, match=r"^work: ended with exit code 3$"):
        run_in_process("work", _dies, on_message=on_message.append)
