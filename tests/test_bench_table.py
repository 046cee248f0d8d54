"""What the benchmark shows: rates for kernels, a label for what was interpreted, verdicts, changes since a baseline."""

import dataclasses
import io

import pytest
from rich.console import Console

from gradlab.profiling.bench import compare, table
from gradlab.profiling.bench import words as words_of
from gradlab.profiling.bench.compare import baseline, changes, slower
from gradlab.profiling.bench.file import as_csv, document, write
from gradlab.profiling.bench.numbers import FASTER, SAME, SLOWER, SUSPECT, UNCLEAR, Interval
from gradlab.profiling.bench.row import FORWARD, Group, Member

MACHINE = {"cpu": "a CPU", "cores": "2", "gpu": "a GPU"}


def times(median, rounds=9, step=0.002):
    """Samples around a median, in an order that no ratio cancels."""
    return tuple(median * (1 + step * ((5 * i) % rounds - rounds // 2)) for i in range(rounds))


def member(name="gradlab", median=1e-3, **changes):
    values = {
        "label": f"{name}.fn",
        "mode": "eager",
        "repeat": 1,
        "warm": times(median),
        "first_call": 0.2,
        "cached_call": 0.04,
        "peak_bytes": 4_000_000,
    }
    return Member(**({"implementation": name} | values | changes))


NATIVE = member("native", 0.5e-3)


def group(*members, **changes):
    values = {
        "op": "linear",
        "case": "square",
        "sizes": {"M": 512},
        "side": "jax",
        "direction": FORWARD,
        "dtype": "float32",
        "device": "cuda",
        "seed": 1,
        "flops": 4_000_000_000,
        "bytes": 200_000_000,
        "bandwidth": 1e12,
        "rate": 1e13,
        "members": members or (member(), NATIVE),
        "repeated_native": times(0.5e-3)[::-1],
    }
    return Group(**(values | changes))


def shown(groups, width=80):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    table.show(groups, console)
    return console.file.getvalue()


def words(text, start):
    return next(line.split() for line in text.splitlines() if start in line)


def test_a_kernels_times_ratio_verdict_and_rates():
    hand = member(cold=(2e-3,), host=(3e-5,))
    text = shown([group(hand, NATIVE)])
    assert words(text, "gradlab eager") == [
        "fwd",
        "gradlab",
        "eager",
        "1.00",
        "±",
        "0.01",
        "ms",
        "2.00",
        "(2.00–2.00)",
        "SLOWER",
        "40%",
    ]
    costs = text[text.index("TFLOP/s") :]
    assert words(costs, "gradlab eager") == [
        "fwd", "gradlab", "eager", "2.00", "ms", "30.0", "µs", "200", "4", "200", "ms", "40.0", "ms", "4.00", "MB",
    ]  # fmt: skip
    assert 0.0 < group().noise < 0.02
    assert f"noise fwd {group().noise:.1%}; ceilings 1000 GB/s, 10 TFLOP/s" in text
    assert "need CUDA" not in text
    assert "interpreted" not in text


def test_a_cpus_flops_are_counted_in_giga():
    text = shown([group(rate=250e9, flops=50_000_000)])
    assert "TFLOP/s" not in text
    assert "ceilings 1000 GB/s, 250 GFLOP/s" in text
    assert words(text[text.index("GFLOP/s") :], "gradlab eager")[3:7] == ["–", "–", "200", "50"]


def test_it_fits_80_columns_and_uses_a_wide_terminal():
    long = group(member(median=123.4567), member("Liger-Kernel", 0.5, mode="compiled"), NATIVE)
    assert max(map(len, shown([long]).splitlines())) <= 80
    assert shown([long], 200).count("implementation") == 1


def test_an_interpreted_kernel_gets_no_verdict_and_no_rate():
    interpreted = group(member(interpreted=True), NATIVE, device="cpu")
    text = shown([interpreted])
    assert words(text, "gradlab eager")[-2:] == ["interpreted", "–"]
    assert words(text[text.index("TFLOP/s") :], "gradlab eager")[3:7] == ["–"] * 4
    assert "never a kernel's speed" in " ".join(text.split())
    assert "need CUDA" in text
    assert shown([]) == ""


def test_a_kernel_on_a_cpu_has_a_verdict_and_pallas_says_what_it_is_there():
    for side, said in (("torch", False), ("jax", True)):
        one = dataclasses.replace(group(device="cpu"), side=side)
        text = " ".join(shown([one]).split())
        assert "SLOWER" in text
        assert ("Pallas kernels in interpret mode" in text) is said
        assert "never a kernel's speed" not in text


@pytest.mark.parametrize(("median", "wanted"), [(1e-3, SLOWER), (0.25e-3, SUSPECT), (0.45e-3, FASTER), (0.5e-3, SAME)])
def test_verdicts(median, wanted):
    one = group(member(median=median), NATIVE)
    assert one.verdict(one.members[0]) == wanted
    assert one.verdict(NATIVE) == ""
    assert ("SUSPECT: linear on jax" in shown([one])) == (wanted == SUSPECT)


def test_a_verdict_is_not_finer_than_the_noise():
    noisy = group(member(median=0.45e-3), NATIVE, repeated_native=tuple(1.2 * s for s in NATIVE.warm))
    assert noisy.noise == pytest.approx(0.2, rel=0.05)
    assert noisy.verdict(noisy.members[0]) == SAME
    loose = group(member(warm=times(0.5e-3, step=0.1)), NATIVE)
    assert loose.verdict(loose.members[0]) == UNCLEAR


def test_each_mode_has_its_own_baseline():
    compiled = member("native", 0.1e-3, mode="compiled")
    one = group(member(), NATIVE, member(mode="compiled"), compiled)
    assert one.ratio(one.members[0]).median == pytest.approx(2)
    assert one.ratio(one.members[2]).median == pytest.approx(10)
    alone = group(member())
    assert alone.ratio(alone.members[0]) is None
    assert alone.verdict(alone.members[0]) == ""


def test_problems_are_reported():
    wrong = group(member(problem="WRONG", note="y is off", warm=()), NATIVE)
    assert "WRONG: linear on jax, square, float32, forward, gradlab eager: y is off" in shown([wrong])


def test_markdown():
    groups = [
        group(),
        group(member(interpreted=True), NATIVE),
        group(member(problem="FAILED", note="no|luck", warm=())),
    ]
    text = words_of.markdown(groups, {"gpu": "Some GPU"})
    assert "- gpu: Some GPU\n- precision: float32: full precision in every product, no TF32\n" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert {line.count("|") for line in lines} == {20}
    assert "| gradlab eager | 1.00 ± 0.01 ms | 2.00 (2.00–2.00) | SLOWER | 40% | – | – | 200 | 4 |" in lines[2]
    assert "- `FAILED: linear on jax, square, float32, forward, gradlab eager: no|luck`" in text


def test_csv_has_a_line_a_member():
    lines = as_csv([group(), group(member(problem="WRONG", note="a, b", warm=()))]).splitlines()
    assert len(lines) == 4
    assert '"a, b"' in lines[3]
    assert lines[1].split(",")[10] == "False"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (1.5, "1.50 ± 0.00 s"),
        (0.01234, "12.3 ± 0.0 ms"),
        (9.996e-4, "1000 ± 0 µs"),
        (3e-8, "30.0 ± 0.0 ns"),
        (0.0, "0.00 ± 0.00 ns"),
    ],
)
def test_duration(seconds, said):
    assert words_of.duration(Interval(seconds, seconds, seconds)) == said
    assert words_of.seconds_in_words(None) == "–"


@pytest.mark.parametrize(("size", "said"), [(12, "12 B"), (4_000, "4.00 kB"), (12_345_678, "12.3 MB"), (None, "–")])
def test_sizes(size, said):
    assert words_of.size_in_words(size) == said


def test_a_change_is_one_of_ratios_not_of_seconds():
    # The machine is three times slower today, gradlab and native alike.
    before = [group(member(median=1e-3), NATIVE)]
    now = [group(member(median=3e-3), member("native", 1.5e-3), repeated_native=times(1.5e-3)[::-1])]
    (change,) = changes(now, before)
    assert change.quotient.median == pytest.approx(1.0)
    assert change.verdict == SAME
    assert not slower([change])


@pytest.mark.parametrize(("median", "wanted"), [(1.2e-3, SLOWER), (0.8e-3, FASTER), (1.005e-3, SAME)])
def test_what_changed(median, wanted):
    found = changes([group(member(median=median), NATIVE)], [group()])
    assert [c.verdict for c in found] == [wanted]
    assert slower(found) == (wanted == SLOWER)
    assert compare.summary(found, "base.json") == f"beside base.json: 1 {wanted}"
    console = Console(file=io.StringIO(), width=80)
    table.show_changes(found, console)
    assert wanted in console.file.getvalue()


def test_a_slowdown_within_the_noise_of_either_run_is_none():
    noisy = group(member(median=1.2e-3), NATIVE, repeated_native=tuple(1.3 * s for s in NATIVE.warm))
    assert not slower(changes([noisy], [group()]))
    assert not slower(
        changes([group(member(median=1.2e-3), NATIVE)], [dataclasses.replace(noisy, members=group().members)])
    )
    assert changes([group()], [group(op="relu")]) == []
    assert compare.summary([], "base.json").endswith("no member in common")


def test_a_baseline_of_another_machine_is_refused(tmp_path):
    path = tmp_path / "base.json"
    write([group()], {"machine": MACHINE}, {"json": path})
    assert [g.key for g in baseline(path, MACHINE)] == [group().key]
    with pytest.raises(ValueError, match=r"of a machine with gpu a GPU, wanted none"):
        baseline(path, {"cpu": "a CPU", "cores": "2"})


def test_a_document_comes_back_as_it_was():
    import json

    one = group(member(cold=times(2e-3), host=times(1e-5), replayed=True), NATIVE, swept=0.5, clocks={"sm_mhz": 1980.0})
    back = Group.from_json(json.loads(document([one], {}))["groups"][0])
    assert back.members[0].warm == pytest.approx(one.members[0].warm, abs=1e-10)
    assert dataclasses.replace(back, members=(), repeated_native=()) == dataclasses.replace(
        one, members=(), repeated_native=()
    )


def test_a_short_call_that_was_not_replayed_is_reported():
    one = group(member(launched="ValueError: adam_step: stream is captured"), NATIVE)
    said = "not replayed from a graph: linear on jax, square, float32, forward, gradlab eager: ValueError: adam_step: stream"
    assert said in shown([one])
    assert said in words_of.markdown([one], {})
    assert "not replayed" not in shown([group()])
