"""The benchmark: rows that are proven before they are timed, what is shown of them, what is written."""

import dataclasses
import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from gradlab.autodiff.side import SIDES, as_tuple
from gradlab.autodiff.side import side as side_of
from gradlab.kernels.spec import Case, spec, specs
from gradlab.profiling import bench, bench_report
from gradlab.profiling.bench_file import SCHEMA, read_json, write_whole
from gradlab.profiling.bench_row import BOTH, FORWARD, Row
from gradlab.profiling.bench_subject import Subject
from gradlab.profiling.native import Native, native, natives

TINY = {
    "adam": Case("tiny", {"E": 9}, {"step": 10}, use="bench"),
    "cross_entropy": Case("tiny", {"M": 4, "V": 7}, use="bench"),
    "linear": Case("tiny", {"M": 5, "K": 7, "N": 3}, {"activation": "relu"}, use="bench"),
    "relu": Case("tiny", {"E": 37}, use="bench"),
}


@pytest.fixture
def tiny(monkeypatch):
    """Every op with one tiny case, eager only."""
    first = {name: dataclasses.replace(op.cases[0], use="bench") for name, op in specs().items()}
    small = {name: dataclasses.replace(op, cases=((first | TINY)[name],)) for name, op in specs().items()}
    monkeypatch.setattr(bench, "spec", lambda name: small[spec(name).name])
    monkeypatch.setattr(bench, "specs", lambda: small)
    monkeypatch.setattr(bench, "MODES", ("eager",))


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=80, no_color=True)


def printed(console):
    return console.file.getvalue()


def plant(monkeypatch, side, op, fn):
    monkeypatch.setitem(natives(side).NATIVE, op, Native("planted", fn))


@pytest.mark.parametrize("side", SIDES)
def test_every_op_has_a_native_on_both_sides(side):
    assert set(natives(side).NATIVE) == set(specs())
    with pytest.raises(ValueError, match=r"no native function of .* is named for 'nothing'"):
        native(side, "nothing")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("op", specs())
def test_natives_compute_the_op(op, side):
    natively, s = native(side, op).fn, side_of(side)
    for case in spec(op).select("check"):
        arrays, options = spec(op).make(case), spec(op).options(case)
        with s.double(), np.errstate(invalid="ignore"):
            got = as_tuple(natively(*(s.put(a, "float64") for a in arrays.values()), **options))
            for value, wanted in zip(got, as_tuple(spec(op).reference(*arrays.values(), **options)), strict=True):
                # optax takes the powers of its rates in float32.
                np.testing.assert_allclose(s.take(value), wanted, rtol=1e-4 if op == "adam" else 1e-10, atol=1e-10)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("direction", [FORWARD, BOTH])
def test_half_precision_is_proven_against_float32(side, direction):
    subject = Subject(spec("linear"), TINY["linear"], side_of(side), "bfloat16")
    value = subject.call("hand", "eager", direction)()
    assert subject.difference(value, direction) == ""
    assert {str(a.dtype).removeprefix("torch.") for a in subject._wanted[direction]} == {"float32"}


def test_rows_of_both_sides(tiny, console, tmp_path):
    path = tmp_path / "rows.json"
    ops = ["linear", "cross_entropy"]
    assert bench.run(ops, SIDES, "float32", path, 0.02, console) == 0
    rows, document = read_json(path)
    assert document["schema"] == SCHEMA
    assert document["complete"] is True
    assert document["dtype"] == "float32"
    assert document["machine"]["python"]
    asked = {(op, side, direction) for op in ops for side in SIDES for direction in (FORWARD, BOTH)}
    assert {(r.op, r.side, r.direction) for r in rows} == asked
    for row in rows:
        assert row.verdict == "ok"
        assert row.native == native(row.side, row.op).label
        assert row.interpreted == side_of(row.side).interpreted()
        assert len(row.hand_seconds) == len(row.native_seconds) >= 4
        assert min(*row.hand_seconds, *row.native_seconds) > 0
        assert row.ratio.low <= row.ratio.median <= row.ratio.high
    linear = next(r for r in rows if r.op == "linear" and r.direction == BOTH)
    assert linear.flops == (2 * 5 * 7 * 3 + 5 * 3) + (4 * 5 * 7 * 3 + 5 * 3)
    assert linear.bytes == 4 * (2 * (35 + 21 + 3 + 15) + 35 + 21 + 3)
    assert linear.sizes == "M 5, K 7, N 3"


def test_json_is_plain(tiny, console, tmp_path):
    path = tmp_path / "rows.json"
    bench.run(["relu"], ["torch"], "float64", path, 0.02, console)
    document = json.loads(path.read_text())
    assert set(document) == {"schema", "machine", "dtype", "precision", "complete", "rows"}
    assert set(document["rows"][0]) == {f.name for f in dataclasses.fields(Row)}
    assert all(isinstance(s, float) for s in document["rows"][0]["hand_seconds"])
    path.write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="not a benchmark of schema"):
        read_json(path)


@pytest.mark.parametrize("side", SIDES)
def test_compiled_rows(side):
    op = dataclasses.replace(spec("relu"), cases=(TINY["relu"],))
    row = Subject(op, TINY["relu"], side_of(side), "float32").row("compiled", BOTH, 0.02)
    assert (row.verdict, row.note, row.mode) == ("ok", "", "compiled")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("factor", [1 + 1e-3, float("nan")])
def test_wrong_results_are_caught(tiny, console, tmp_path, monkeypatch, side, factor):
    right = native(side, "relu").fn
    plant(monkeypatch, side, "relu", lambda x: right(x) * factor)
    path = tmp_path / "rows.json"
    assert bench.run(["relu", "linear"], [side], "float32", path, 0.02, console) == 1
    rows, _ = read_json(path)
    assert [r.verdict for r in rows] == ["wrong", "wrong", "ok", "ok"]
    assert rows[0].note.startswith("y is off by")
    assert rows[1].note.startswith("dx is off by")
    assert not rows[0].hand_seconds
    assert f"wrong: relu on {side}, tiny, float32, eager, forward: y is off by" in " ".join(printed(console).split())


def test_wrong_shape_dtype_and_zeros_are_caught(monkeypatch):
    import torch

    subject = Subject(spec("relu"), TINY["relu"], side_of("torch"), "float32")
    right = subject.call("hand", "eager", FORWARD)()
    assert subject.difference(right, FORWARD) == ""
    assert subject.difference(right[1:], FORWARD) == "y is float32 [36], wanted float32 [37]"
    assert subject.difference(right.double(), FORWARD) == "y is float64 [37], wanted float32 [37]"
    assert "off by" in subject.difference(torch.zeros_like(right), FORWARD)


def test_an_error_is_a_row_and_the_rest_goes_on(tiny, console, monkeypatch):
    def fails(x):
        raise RuntimeError("out of\nluck")

    plant(monkeypatch, "torch", "relu", fails)
    assert bench.run(["relu", "cross_entropy"], ["torch"], "float32", None, 0.02, console) == 1
    assert "RuntimeError: out of luck" in printed(console)
    assert "cross_entropy on torch, tiny: M 4, V 7" in printed(console)


def test_interrupt_keeps_the_finished_rows(tiny, console, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    plant(monkeypatch, "torch", "relu", interrupted)
    path = tmp_path / "rows.json"
    assert bench.run(["linear", "relu"], ["torch"], "float32", path, 0.02, console) == 130
    rows, document = read_json(path)
    assert [r.op for r in rows] == ["linear", "linear"]
    assert document["complete"] is False
    assert "linear on torch" in printed(console)
    assert "interrupted: 2 of 4 rows" in printed(console)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float8"}, "unknown dtype 'float8'; the lab has float64, float32, float16, bfloat16"),
        ({"ops": ["relo"]}, "unknown op 'relo'; the lab has adam"),
        ({"sides": ["numpy"]}, "unknown side 'numpy'"),
        ({"budget": 0.0}, "budget is 0.0, wanted"),
        ({"budget": math.nan}, "budget is nan, wanted"),
    ],
)
def test_errors_of_the_user(console, change, message):
    asked = {"ops": None, "sides": SIDES, "dtype": "float32", "json": None, "budget": 0.1} | change
    with pytest.raises(ValueError, match=message):
        bench.run(**asked, console=console)


def test_a_file_that_cannot_be_written_is_said_before_the_work(console, tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "rows.json"):
        with pytest.raises(ValueError, match="cannot write"):
            bench.run(None, SIDES, "float32", path, 0.1, console)


def row(**changes):
    values = {
        "op": "linear", "case": "square", "sizes": "M 512", "side": "jax", "mode": "eager", "direction": FORWARD,
        "dtype": "float32", "device": "cuda", "native": "jnp.dot", "verdict": "ok", "interpreted": False,
        "flops": 4_000_000_000, "bytes": 2_000_000_000, "repeat": 1, "hand_seconds": (0.9e-3, 1e-3, 1.1e-3),
        "native_seconds": (0.45e-3, 0.5e-3, 0.55e-3),
    }  # fmt: skip
    return Row(**(values | changes))


def test_compiled_kernels_have_rates_and_interpreted_ones_a_label(console):
    bench_report.show([row(), row(side="torch", interpreted=True)], console)
    lines = printed(console).splitlines()
    by_jax = lines[lines.index("linear on jax, square: M 512") + 1].split()
    assert by_jax[2:] == ["1.00", "±", "0.05", "ms", "500", "±", "25", "µs", "2.00", "(2.00–2.00)", "2000", "4000"]
    by_torch = lines[lines.index("linear on torch, square: M 512") + 1].split()
    assert by_torch[-1] == "interpreted"
    assert not {"2000", "4000"} & set(by_torch)
    assert "never a kernel's speed" in " ".join(printed(console).split())
    assert max(map(len, lines[: lines.index("native on jax: jnp.dot")])) <= 80


def test_no_word_of_interpreters_where_nothing_was_interpreted(console):
    bench_report.show([row()], console)
    assert "interpreted" not in printed(console)
    bench_report.show([], console)


def test_markdown():
    wrong = row(op="relu", verdict="wrong", note="y is off", hand_seconds=(), native_seconds=())
    text = bench_report.markdown([row(), row(interpreted=True), wrong], {"gpu": "Some GPU"})
    assert "- gpu: Some GPU\n- precision: float32: full precision in every product, no TF32\n" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {14}
    assert "| 1.00 ± 0.05 ms | 500 ± 25 µs | 2.00 (2.00–2.00) | 2000 | 4000 | `jnp.dot` |" in lines[2]
    assert "| interpreted |  | `jnp.dot` |" in lines[3]
    assert "- wrong: relu on jax, square, float32, eager, forward: `y is off`" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1.5, "1.50 ± 0.00 s"),
        (0.01234, "12.3 ± 0.0 ms"),
        (9.996e-4, "1000 ± 0 µs"),
        (3e-8, "30.0 ± 0.0 ns"),
        (0.0, "0.00 ± 0.00 ns"),
    ],
)
def test_duration(seconds, words):
    assert bench_report.duration(bench_report.Spread(seconds, seconds, seconds)) == words


@pytest.mark.parametrize("side", SIDES)
def test_data_is_random_and_the_same_each_time(side):
    first, second = (Subject(spec("linear"), TINY["linear"], side_of(side), "float32") for _ in range(2))
    for a, b in zip(first._arrays, second._arrays, strict=True):
        for x, y in zip(map(side_of(side).take, a), map(side_of(side).take, b), strict=True):
            assert np.array_equal(x, y)
            assert np.all(x != 0)


def test_large_cases_are_for_cuda_alone():
    for device, largest in (("cpu", "bench"), ("cuda", "bench gpu")):
        side = SimpleNamespace(device=lambda device=device: device)
        assert bench.cases(spec("linear"), side)[-1].use == largest


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "page"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["page"]
    assert path.read_text() == "new"
