"""`gradlab tune`: what is tried and ruled out, how a winner is found, and where it is kept; no GPU, and no clock."""

import contextlib
import errno
import io
import re
import sys
import tomllib
from dataclasses import replace

import pytest

pytest.importorskip("torch")

from rich.console import Console

from gradlab import cli
from gradlab.kernels.configs import tiles
from gradlab.kernels.configs.tiles import PACKAGED, Row, read, table
from gradlab.kernels.runtime.launch_triton import gpu_sizes
from gradlab.kernels.spec import specs
from gradlab.profiling.machine_code.gpus import GPUS
from gradlab.profiling.machine_code.targets import TARGETS
from gradlab.profiling.tune import command, device_torch, file, measure
from gradlab.profiling.tune import survey as surveying
from gradlab.profiling.tune.candidates import candidates, refusal
from gradlab.profiling.tune.command import Place, TuneArgs, tune
from gradlab.profiling.tune.predict import Facts
from gradlab.profiling.tune.survey import Tried

# What a driver may call a GPU.
ODD = 'Some "GPU" \\ 80GB é\t\x7f]]'
ROW = Row("matmul", ("sm_90",), ("float32",), 64, 16, 64, "it is a test")


def run(**options):
    """(exit code, what is printed) of the command on a small case of linear."""
    out = io.StringIO()
    args = TuneArgs("linear", **({"dtype": "float32", "case": "perceptron", "limit": 60.0} | options))
    code = tune(args, Console(file=out, width=100))
    return code, " ".join(out.getvalue().split())


def test_the_nearest_row_comes_first_and_none_twice():
    half = replace(ROW, dtypes=("bfloat16",), M=128, K=64, N=128, warps=8)
    found = candidates(half)
    assert found[0] is half
    assert {(r.M, r.K, r.N, r.warps, r.stages) for r in found[1:5]} == {
        (64, 64, 128, 8, 3), (128, 32, 128, 8, 3), (128, 64, 64, 8, 3), (128, 64, 128, 4, 3)
    }  # fmt: skip
    assert len({(r.M, r.K, r.N, r.warps, r.stages) for r in found}) == len(found) == 3**4 * 2
    assert {r.K for r in candidates(ROW)} == {16, 32, 64}


@pytest.mark.parametrize(
    ("row", "arch", "why"),
    [
        (replace(ROW, M=128, N=128, warps=4), "sm_90", ""),
        (replace(ROW, M=256, N=256, warps=8), "sm_90", "sums take more than 192 of a thread's 255 registers"),
        # Of doubles a register holds half.
        (replace(ROW, dtypes=("float64",), M=128, N=128), "sm_90", "sums take more than 192 of a thread's 255 registers"),
        # (256 + 128) 64 two-byte elements, three times, are 144 KiB.
        (replace(ROW, dtypes=("float16",), M=256, N=128, K=64, warps=8, stages=4), "sm_90", ""),
        (replace(ROW, dtypes=("float16",), M=256, N=128, K=64, warps=8, stages=4), "sm_86",
         "operands take more than the 99 KiB of shared memory that a block has"),
    ],
)  # fmt: skip
def test_what_no_compiler_makes_good_is_refused(row, arch, why):
    assert refusal(row, TARGETS[arch]) == why


def test_a_row_in_a_file_goes_before_the_packages_and_is_replaced(tmp_path, monkeypatch):
    own = tmp_path / "tiles.toml"
    monkeypatch.setenv("GRADLAB_TILES", str(own))
    new = replace(ROW, on=(ODD,), N=128, stages=2)
    file.save(own, new)
    file.save(own, replace(new, dtypes=("float64",)))
    file.save(own, replace(new, M=32, reason='words with "quotes"\nand lines'))
    rows, _ = read(own)
    assert [(r.dtypes, r.M, r.reason) for r in rows] == [
        (("float64",), 64, "it is a test"), (("float32",), 32, 'words with "quotes"\nand lines')
    ]  # fmt: skip
    monkeypatch.setattr(tiles, "_table", None)
    assert table().row("matmul", (ODD, "sm_90", "cuda"), "float32") == rows[1]
    assert table().row("matmul", ("Another GPU", "sm_90", "cuda"), "float32").reason != rows[1].reason
    # The package's file keeps what it has, comments too.
    packaged = tmp_path / "packaged.toml"
    packaged.write_text(PACKAGED.read_text())
    file.save(packaged, new)
    assert packaged.read_text().startswith(PACKAGED.read_text().rstrip("\n"))
    assert read(packaged)[0][-1] == new
    packaged.write_text(file.entry(replace(new, on=("A", "B"))))
    with pytest.raises(ValueError, match="in a row with others, wanted a row of its own"):
        file.save(packaged, replace(new, on=("A",)))


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    with pytest.raises(ValueError, match=r"^tune: output is .*, wanted a file that can be written: Not a directory$"):
        file.check(tmp_path / "a file" / "below" / "tiles.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[[tile]]\nM = 3\n")
    with pytest.raises(ValueError, match=r"^tiles: .*broken.toml: tile 1 has no kernel, "):
        file.check(broken)

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file, "write_whole", full)
    with pytest.raises(ValueError, match=r"^tune: output is .*, wanted a file .*: No space left on device$"):
        file.save(tmp_path / "tiles.toml", ROW)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (f"tile = [{{{', '.join(file.entry(ROW).splitlines()[1:])}}}]\n", False),
        (file.entry(replace(ROW, reason="")).replace('""', '"""\n[[tile]]\n"""'), False),
        ("  " + file.entry(replace(ROW, on=("A",), dtypes=("float64",))).replace("\n", "\n  "), True),
    ],
    ids=["an array", "lines of text", "indented"],
)
def test_a_file_is_never_left_with_an_error(tmp_path, text, taken):
    """TOML has several ways to write an entry; what cannot be kept as it stands is refused before measuring."""
    own, row = tmp_path / "tiles.toml", replace(ROW, on=("A",), dtypes=("float64",), M=32)
    own.write_text(text, encoding="utf-8")
    for put in (file.check, lambda own: file.save(own, row)):
        with contextlib.nullcontext() if taken else pytest.raises(ValueError, match=r"^tune: .*, wanted entries"):
            put(own)
    assert read(own)[0] == [row] if taken else own.read_text(encoding="utf-8") == text


def test_a_dry_run_says_what_would_be_measured(monkeypatch):
    tried = [
        # Four programs on as many multiprocessors in place of one: the model's best, and far behind it the others.
        {"M": 64, "N": 64, "warps": 4},
        {"K": 32},
        # The product has 128 rows: its tile is that of the row in use.
        {"M": 256},
        {"M": 256, "N": 256},
    ]
    monkeypatch.setattr(surveying, "candidates", lambda row: [row, *(replace(row, **values) for values in tried)])
    code, out = run(dry_run=True, gpu="H100", dtype="bfloat16")
    assert code == 0
    assert "matmul in linear, bfloat16, sm_90; perceptron" in out
    assert re.search(
        r"64 x 64 x 64 4 3 \d+ 0 \d+ K \d+ 0\.[2-6]\d 128 x 64 x 128 8 3 .* 1\.00 in use 128 x 32 x 128 8", out
    )
    assert re.search(r"model: \d\.\d\d of best", out)
    assert "the same launches as 128 x 64 x 128, 8 warps, 3 stages: 256x64x128/8/3" in out
    assert "sums take more than 192 of a thread's 255 registers: 256x64x256/8/3" in out
    assert "not reached" not in out
    # No time at all: the row in use alone.
    assert "3 more were not reached" in run(dry_run=True, limit=1e-9, dtype="bfloat16")[1]


class Ticks:
    """Seconds that the row in use decides on: tiles of 32 rows take a share of the others' time."""

    share = 0.8

    def __call__(self, call, repeat):
        call()
        row = table().row("matmul", ("sm_90", "cuda"), "float32")
        return repeat * 1e-3 * (self.share if row.M == 32 else 1.0)


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """A GPU of an odd name, whose kernels run on the CPU with a GPU's tiles, and whose clock is `Ticks`."""
    monkeypatch.setenv("GRADLAB_TILES", "")
    monkeypatch.setattr(tiles, "_table", None)
    monkeypatch.setattr(command, "_place", lambda args: Place((ODD, "sm_90"), TARGETS["sm_90"], GPUS["H200"]))
    monkeypatch.setattr(measure, "timers", lambda side: {"warm": Ticks()})

    def survey(predictor, row, seconds, found):
        found.tried += [
            Tried(replace(row, **values), Facts(1)) for values in ({}, {"N": 128}, {"M": 32}, {"M": 32, "N": 32})
        ]

    monkeypatch.setattr(command, "survey", survey)
    with gpu_sizes("sm_90"):
        yield tmp_path / "own" / "tiles.toml"
    tiles._table = None


def test_the_fastest_row_that_is_right_is_kept_by_the_gpus_name(faked, monkeypatch):
    difference = measure.BenchSubject.difference

    def wrong(self, value, direction):
        return (
            "y is wrong" if table().row("matmul", ("sm_90",), "float32").N == 32 else difference(self, value, direction)
        )

    monkeypatch.setattr(measure.BenchSubject, "difference", wrong)
    code, out = run(to=faked, case="odd")
    assert code == 0
    assert "y is wrong" in out
    assert "matmul: 32 x 16 x 64, 4 warps, 3 stages, 1.25 times as fast as 64 x 16 x 64, 4 warps, 3 stages" in out
    assert f"it is in {faked}, which GRADLAB_TILES has to name" in out.replace("\n", "")
    (entry,) = tomllib.loads(faked.read_text())["tile"]
    assert entry["on"] == [ODD]
    assert entry["reason"].startswith(f"measured on {ODD}, torch ")
    assert entry["reason"].endswith(": 1.25 times as fast as 64 x 16 x 64, 4 warps, 3 stages")
    # The best of them is no faster beyond the noise.
    monkeypatch.setattr(Ticks, "share", 0.995)
    assert "64 x 16 x 64, 4 warps, 3 stages stays, nothing is faster beyond the noise" in run(to=faked, case="odd")[1]


def test_ctrl_c_keeps_what_was_finished(faked, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measured", interrupted)
    code, out = run(to=faked, case="odd")
    assert code == 130
    assert "64 x 16 x 128" in out
    assert "interrupted: 0 of 1 kinds are finished" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("conv9d", f"op: name is 'conv9d', wanted one of {', '.join(specs())}"),
        ("linear --dtype half", "tune: dtype is 'half', wanted one of float64, float32, float16, bfloat16"),
        ("linear --limit 0", "tune: limit is 0.0, wanted a number of seconds above 0"),
        ("linear --limit nan", "tune: limit is nan, wanted a number of seconds above 0"),
        ("linear --case none", "tune: case is 'none', wanted one of one, odd, "),
        ("linear", "tune: device is no GPU of CUDA, wanted one, or --dry-run, which measures nothing"),
        ("linear --arch sm_90", "tune: arch is 'sm_90', wanted none without --dry-run: "),
        ("linear --dry-run --arch sm_70", "tune: arch is 'sm_70', wanted one of sm_80, sm_86, sm_89, sm_90, sm_100"),
        ("linear --dry-run --gpu T4", "tune: gpu is 'T4', wanted one of A100, "),
        ("linear --dry-run --gpu A100 --arch sm_90", "tune: gpu is A100 of sm_80, wanted a GPU of sm_90"),
        ("linear --packaged --to a.toml", "tune: --packaged came with --to, wanted one of them"),
        ("relu --dry-run", "tune: op is relu, wanted one whose kernels take rows of the table of tiles"),
    ],
)
def test_errors_are_one_line(words, message, monkeypatch, capsys):
    if words == "linear" and device_torch.gpu():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["gradlab", "tune", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith(f"gradlab: {message}")
    assert err.count("\n") == 1
