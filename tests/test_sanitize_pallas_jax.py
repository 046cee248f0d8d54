"""Pallas kernels under `gradlab.sanitize`: planted faults, each found where it stands; what is right raises none."""

import importlib.util
import inspect
import json
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

import gradlab
import gradlab.jax as lab
from gradlab.profiling.pallas_cpu.memory import Memory
from gradlab.profiling.sanitize.imported import when_imported
from gradlab.profiling.sanitize.words import shown
from tests.test_cli import run as cli

HERE = shown(__file__)
SMALL = jax.ShapeDtypeStruct((10, 32), jnp.float32)


def copy(x_ref, y_ref):
    y_ref[...] = x_ref[...]


def half(x_ref, y_ref):
    y_ref[:8] = x_ref[:8]


def running_sum(x_ref, y_ref):
    y_ref[...] += x_ref[...]


def add_to_the_last(x_ref, y_ref):
    y_ref[...] = y_ref[...] + x_ref[...]


def clear(x_ref, y_ref):
    y_ref[...] = x_ref[...]
    x_ref[...] = jnp.zeros_like(x_ref)


def masked(x_ref, y_ref):
    at = pl.program_id(1) * 32 + jnp.arange(32)
    mask = jnp.broadcast_to(at < 40, (16, 32))
    x = pltriton.load(x_ref.at[...], mask=mask, other=0.0)
    pltriton.store(y_ref.at[...], x, mask=mask)


def rows(x_ref, y_ref):
    y_ref[...] = x_ref[...].sum(axis=1)


def by_blocks(i, j):
    return i, j


def launch(kernel, shape, block, grid, index=by_blocks, out=None, interpret=True, **options):
    """A launch of `kernel` on ones; `out` is shape, block and index of the result."""
    result, out_block, out_index = out or (shape, block, index)
    call = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[pl.BlockSpec(block, index)],
        out_specs=pl.BlockSpec(out_block, out_index),
        out_shape=jax.ShapeDtypeStruct(result, jnp.float32),
        interpret=interpret,
        **options,
    )
    return call(jnp.ones(shape))


def examined(*args, **options):
    """The faults of a launch as kind, access and element, and the report."""
    with gradlab.sanitize(raises=False) as report:
        launch(*args, **options)
    assert report.pallas == report.launches == 1
    return {(f.kind, f.access, f.argument, f.place) for f in report.faults}, report


BOUNDS, RACE, UNWRITTEN = "out of bounds", "race with a store", "result never written"
PLANTED = {
    "a partial block of the first axis": (
        (copy, (30, 32), (16, 32), (2, 1)),
        {(BOUNDS, "load", "x_ref", (30, 0)), (BOUNDS, "store", "y_ref", (30, 0))},
    ),
    # Past a row's end the next row begins: within the memory of the array, and wrong.
    "a partial block of the last axis": (
        (copy, (32, 40), (16, 32), (2, 2)),
        {(BOUNDS, "load", "x_ref", (0, 40)), (BOUNDS, "store", "y_ref", (0, 40))},
    ),
    "a partial block that is summed": (
        (rows, (32, 40), (16, 64), (2, 1), by_blocks, ((32,), (16,), lambda i, j: (i,))),
        {(BOUNDS, "load", "x_ref", (0, 40))},
    ),
    "blocks that overlap": (
        (copy, (32, 32), (16, 32), (2, 2), lambda i, j: (i, 0)),
        {(RACE, "store", "y_ref", (0, 0))},
    ),
    "an index map of swapped axes": (
        (copy, (16, 96), (16, 32), (1, 3), lambda i, j: (j, i)),
        {
            (BOUNDS, "load", "x_ref", (16, 0)),
            (BOUNDS, "store", "y_ref", (16, 0)),
            (UNWRITTEN, "store", "y_ref", (0, 32)),
        },
    ),
    "an index map one block too far": (
        (copy, (16, 64), (16, 32), (1, 2), lambda i, j: (i, j + 1)),
        {
            (BOUNDS, "load", "x_ref", (0, 64)),
            (BOUNDS, "store", "y_ref", (0, 64)),
            (UNWRITTEN, "store", "y_ref", (0, 0)),
        },
    ),
    "an index map before the first block": (
        (copy, (64, 32), (16, 32), (4, 1), lambda i, j: (i - 1, j)),
        {
            (BOUNDS, "load", "x_ref", (-16, 0)),
            (BOUNDS, "store", "y_ref", (-16, 0)),
            (UNWRITTEN, "store", "y_ref", (48, 0)),
        },
    ),
    "a grid that is too small": (
        (copy, (64, 32), (16, 32), (3, 1)),
        {(UNWRITTEN, "store", "y_ref", (48, 0))},
    ),
    "half a block": ((half, (16, 32), (16, 32), (1, 1)), {(UNWRITTEN, "store", "y_ref", (8, 0))}),
    "a sum over a grid that a GPU runs at once": (
        (running_sum, (64, 32), (16, 32), (4, 1), by_blocks, ((16, 32), (16, 32), lambda i, j: (0, 0))),
        {
            ("uninitialised load", "load", "y_ref", (0, 0)),
            (RACE, "load", "y_ref", (0, 0)),
            (RACE, "store", "y_ref", (0, 0)),
            ("race with a load", "store", "y_ref", (0, 0)),
        },
    ),
    "a result that is read first": (
        (add_to_the_last, (16, 32), (16, 32), (1, 1)),
        {("uninitialised load", "load", "y_ref", (0, 0))},
    ),
    "an operand that is stored to": (
        (clear, (16, 32), (16, 32), (1, 1)),
        {("store to an operand", "store", "x_ref", (0, 0))},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_nothing_else(name):
    given, wanted = PLANTED[name]
    found, report = examined(*given)
    assert found == wanted
    lines, first = inspect.getsourcelines(given[0])
    assert {f.file for f in report.faults} == {__file__}
    assert {f.line for f in report.faults} <= set(range(first, first + len(lines)))


@pytest.mark.parametrize(
    "given",
    [
        (copy, (32, 64), (16, 32), (2, 2)),
        (masked, (32, 40), (16, 32), (2, 2)),
        # A written result is the operand's memory, read before each block is stored.
        (add_to_the_last, (32, 32), (16, 32), (2, 1)),
        (rows, (32, 64), (16, 64), (2, 1), by_blocks, ((32,), (16,), lambda i, j: (i,))),
    ],
    ids=["whole blocks", "a mask", "in place", "a sum"],
)
def test_what_is_right_raises_no_alarm(given):
    options = {"input_output_aliases": {0: 0}} if given[0] is add_to_the_last else {}
    found, report = examined(*given, **options)
    assert not found
    assert str(report) == "no fault in 1 launch of Pallas kernels, lowered for CUDA, on CPU arrays"


def test_what_a_paragraph_says(tmp_path):
    _, report = examined(copy, (32, 40), (16, 32), (2, 2))
    first = inspect.getsourcelines(copy)[1] + 1
    assert str(report).split("\n\n")[0].splitlines() == [
        f"{HERE}:{first}: out of bounds: load of x_ref[0, 40] and 767 more, outside of its array's 32 x 40 elements",
        "    copy: y_ref[...] = x_ref[...]",
        "    operand 0, float32[32, 40]; program (0, 1) of (2, 2), without a mask; launch 1",
    ]
    kept = tmp_path / "faults.json"
    report.write_json(kept)
    facts = json.loads(kept.read_text())
    assert (facts["launches"], facts["pallas"], facts["not_examined"]) == (1, 1, {})
    assert facts["faults"][0]["place"] == [0, 40]
    _, report = examined(half, (16, 32), (16, 32), (1, 1))
    first = inspect.getsourcelines(half)[1] + 1
    assert str(report).startswith(
        f"{HERE}:{first}: result never written: y_ref[8, 0] and 255 more, which no program has stored\n"
    )


def test_bounds_alone():
    with gradlab.sanitize(bounds=True, raises=False) as report:
        launch(copy, (32, 32), (16, 32), (2, 2), lambda i, j: (i, 0))
        assert report
        launch(copy, (30, 32), (16, 32), (2, 1))
    assert {f.kind for f in report.faults} == {BOUNDS}


def test_floats():
    def root(x_ref, y_ref):
        y_ref[...] = jnp.sqrt(x_ref[...] - 2)

    with gradlab.sanitize(floats=True, raises=False) as report:
        launch(root, (16, 32), (16, 32), (1, 1))
    (fault,) = report.faults
    assert "NaN" in fault.kind or "non-finite" in fault.kind


def test_errors_end_where_they_are_waited_for():
    with pytest.raises(gradlab.SanitizeError, match="x_ref") as raised, gradlab.sanitize(first=True):
        np.asarray(launch(copy, (30, 32), (16, 32), (2, 1)))
    assert raised.value.report.pallas == 1
    with pytest.raises(gradlab.SanitizeError, match="2 faults in 1 launch"), gradlab.sanitize():
        launch(copy, (30, 32), (16, 32), (2, 1))


def test_launches_that_are_on_their_way_count():
    block = pl.BlockSpec((16, 32), lambda i: (0, 0))
    call = pl.pallas_call(copy, grid=(1,), in_specs=[block], out_specs=block, out_shape=SMALL, interpret=True)
    cube, last = jax.jit(lambda a: a @ a @ a), jax.jit(lambda a: call(a[:10, :32]))
    a = jnp.ones((1500, 1500))
    for _ in range(2):
        # The second time both are compiled, and nothing has waited for the first when the second is launched.
        with gradlab.sanitize(raises=False) as report:
            y = last(cube(a))
        assert (report.pallas, len(report.faults)) == (1, 2)
        np.testing.assert_array_equal(y, 1500.0**2)


def test_an_operand_that_a_kernel_may_store_to_is_a_copy():
    x = np.ones(4, np.float32)
    given = {"operands": 1, "aliases": {}, "shapes": ((4,), (4,)), "spaces": ((4,), (4,)), "dtypes": (x.dtype,)}
    for stored in (set(), {0}):
        memory = Memory(types.SimpleNamespace(**given), [x], stored)
        assert np.shares_memory(memory.arrays[0], x) == (not stored)


def test_outside_of_it_programs_are_as_they_were():
    """What was compiled before is examined within, and not after."""
    call = jax.jit(lambda: launch(copy, (30, 32), (16, 32), (2, 1)))
    relu = jax.jit(lab.relu)
    x = jnp.ones(300)
    call(), relu(x)
    with gradlab.sanitize(raises=False) as report:
        call(), relu(x)
    assert report.pallas == 2
    assert len(report.faults) == 2
    call(), relu(x)
    assert report.pallas == 2
    with gradlab.sanitize(raises=False) as again:
        call()
    assert (again.pallas, len(again.faults)) == (1, 2)


def test_a_kernel_with_no_program_for_cuda():
    """Interpreted as it says, and told of; refused in one line where it does not say so."""
    given = (copy, (30, 30), (15, 15), (2, 2))
    with gradlab.sanitize() as report:
        np.testing.assert_array_equal(launch(*given), 1.0)
    assert report.launches == 0
    assert "not examined, but interpreted: copy (" in str(report)
    with gradlab.sanitize(), pytest.raises(ValueError, match=r"^sanitize: kernel copy at .* has no program for CUDA"):
        launch(*given, interpret=False)


SCRIPT = """\
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

def copy(x_ref, y_ref):
    y_ref[...] = x_ref[...]

def call(n):
    block = pl.BlockSpec((128,), lambda i: (i,))
    shape = jax.ShapeDtypeStruct((n,), jnp.float32)
    return pl.pallas_call(
        copy, grid=(2,), in_specs=[block], out_specs=block, out_shape=shape, interpret=True
    )(jnp.ones(n))
"""


def test_the_command(monkeypatch, capsys, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT + "import sys\nprint(call(int(sys.argv[1])).sum())\n")
    code, out, err = cli(monkeypatch, capsys, "sanitize", str(path), "200")
    assert (code, out) == (1, "200.0\n")
    assert f"{path}:6: out of bounds: load of x_ref[200] and 55 more" in err
    assert err.endswith("2 faults in 1 launch of Pallas kernels, lowered for CUDA, on CPU arrays\n")
    code, _, err = cli(monkeypatch, capsys, "sanitize", "--first", str(path), "200")
    assert code == 1
    assert "Traceback" not in err
    assert cli(monkeypatch, capsys, "sanitize", str(path), "256")[0] == 0


def test_the_check(monkeypatch, capsys):
    code, out, _ = cli(monkeypatch, capsys, "check", "relu", "--side", "jax", "--part", "derivative", "--sanitize")
    assert code == 0
    assert "gradlab sanitize: no fault in " in out
    assert out.endswith(" launches of Pallas kernels, lowered for CUDA, on CPU arrays\n")


def test_doubles_are_doubles_in_every_thread():
    """XLA runs a program in threads of its own, where jax knows no float64 under `jax.enable_x64(True)`."""
    with gradlab.sanitize() as report, ThreadPoolExecutor(1) as threads:
        with jax.enable_x64(True):
            x = jnp.arange(256.0)
            block = pl.BlockSpec((128,), lambda i: (i,))
            call = pl.pallas_call(copy, grid=(2,), in_specs=[block], out_specs=block, out_shape=x, interpret=True)
            compiled = jax.jit(call).lower(x).compile()
        y = threads.submit(compiled, x).result()
    assert report.pallas == 1
    np.testing.assert_array_equal(y, np.arange(256.0))
    assert y.dtype == "float64"


def test_something_is_done_once_a_module_is_there(monkeypatch, tmp_path):
    (tmp_path / "waited_for.py").write_text("VALUE = 3\n")
    (tmp_path / "waited_for_too.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("waited_for", "waited_for_too"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    finders, seen = list(sys.meta_path), []
    with when_imported("waited_for", lambda: seen.append(sys.modules["waited_for"].VALUE)):
        importlib.import_module("waited_for_too")
        assert not seen
        module = importlib.import_module("waited_for")
        assert seen == [3]
        assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert sys.meta_path == finders
    with when_imported("waited_for", lambda: seen.append(0)):
        assert seen == [3, 0]


WITHOUT_TORCH = """\
import importlib.util, sys
there = importlib.util.find_spec
sys.modules["torch"] = None
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else there(name, *rest)
from gradlab.cli import main
sys.argv = ["gradlab", "sanitize", sys.argv[1]]
main()
"""


def test_without_torch_from_the_import_of_pallas_on(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(f"import sys\nassert 'jax' not in sys.modules\nimport gradlab.jax\n{SCRIPT}call(200)\n")
    run = [sys.executable, "-c", WITHOUT_TORCH, str(path)]
    done = subprocess.run(run, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert "out of bounds: load of x_ref[200] and 55 more" in done.stderr
    assert done.stderr.endswith("2 faults in 1 launch of Pallas kernels, lowered for CUDA, on CPU arrays\n")
    assert done.returncode == 1


def test_what_is_not_installed_is_said_in_one_line(monkeypatch):
    there = importlib.util.find_spec
    for missing, words in ((("triton",), "sanitize needs triton"), (("torch", "jax"), "sanitize needs torch or jax")):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, gone=missing: None if name in gone else there(name)
        )
        with pytest.raises(ModuleNotFoundError, match=words), gradlab.sanitize():
            pass


def test_the_kernels_of_jax_itself():
    """Written for GPUs, they run on a CPU as they are: masks of partial blocks, sums in several programs."""
    from jax.experimental.pallas.ops.gpu import rms_norm

    def by_hand(x, w, b):
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w + b

    random = np.random.default_rng(1)
    given = [jnp.asarray(random.standard_normal(s), jnp.float32) for s in ((2, 16, 200), (200,), (200,))]

    def pulled(norm):
        return jax.jit(jax.grad(lambda *given: (norm(*given) ** 2).sum(), (0, 1, 2)))(*given)

    with gradlab.sanitize() as report:
        got = pulled(rms_norm.rms_norm)
    assert report.pallas == 3
    for ours, want in zip(got, pulled(by_hand), strict=True):
        np.testing.assert_allclose(ours, want, rtol=0, atol=1e-5 * float(jnp.abs(want).max()))
