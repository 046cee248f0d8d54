"""The table of tiles: which row a launch takes, and files with errors."""

import contextlib
import re

import pytest

from gradlab.kernels.configs import tiles
from gradlab.kernels.configs.tiles import PACKAGED, Row, read, table, trying

ROW = """
[[tile]]
kernel = "matmul"
on = ["sm_90"]
dtypes = ["float16"]
M = 64
K = 32
N = 256
reason = "it is a test"
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A file that GRADLAB_TILES names."""

    def write(text):
        file = tmp_path / "own tiles.toml"
        file.write_text(text, encoding="utf-8")
        monkeypatch.setenv("GRADLAB_TILES", str(file))
        monkeypatch.setattr(tiles, "_table", None)
        return file

    yield write
    tiles._table = None


def test_the_packages_rows_are_right_and_reach_every_gpu_and_dtype():
    rows, splits = read(PACKAGED)
    of_all = {(kind, dtype) for kind in ("matmul", "convolution", "logits") for dtype in tiles.DTYPES}
    for kind, dtype in of_all | {(row.kernel, dtype) for row in rows if "cpu" not in row.on for dtype in row.dtypes}:
        assert table().row(kind, ("sm_75", "cuda"), dtype).M
    assert {place for split in splits for place in split.on} >= {"cuda", "cpu"}


def test_kind_goes_before_place_and_a_more_special_place_first(written):
    row = Row("convolution", ("sm_90",), ("float16",), 256, 64, 64, "it is a test")
    with trying(row):
        assert table().row("convolution", ("sm_90", "cuda"), "float16") is row
        assert table().row("weight gradient", ("NVIDIA H100", "sm_90", "cuda"), "float16") is row
        assert table().row("convolution", ("sm_80", "cuda"), "float16") is not row
        # Its own kind has a row for every GPU: what suits contiguous channels does not suit these.
        assert table().row("scattered convolution", ("sm_90", "cuda"), "float16") is not row
    assert table().row("convolution", ("sm_90", "cuda"), "float16") is not row
    written(ROW)
    assert table().row("matmul", ("sm_90", "cuda"), "float16").N == 256
    assert table().row("matmul", ("sm_90", "cuda"), "bfloat16").N == 128
    with pytest.raises(ValueError, match=r"^tiles: kind is 'nothing' in float16 on cpu, wanted one with a row$"):
        table().row("nothing", ("cpu",), "float16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[tile]\n", "came with Expected .*, wanted a readable TOML file"),
        ("[tile]\nM = 3\n", r"tile of .* is dict, wanted entries \[\[tile\]\]"),
        ("tiles = 3\n", r"has tiles, wanted \[\[tile\]\] and \[\[split\]\]"),
        (ROW + "BM = 64\n", "tile 1 has unknown BM, wanted kernel, on, dtypes, M, K, N, reason, .*, small, least"),
        (ROW.replace("K = 32", ""), "tile 1 has no K, wanted kernel, .*"),
        (ROW.replace("K = 32", "K = 48"), "K of .*: tile 1 is 48, wanted a power of two from 16 on"),
        (ROW.replace("K = 32", "K = true"), "K of .*: tile 1 is True, wanted a power of two from 16 on"),
        (ROW + "warps = 6\n", "warps of .*: tile 1 is 6, wanted 1, 2, 4, 8, 16 or 32"),
        (ROW + "stages = 0\n", "stages of .*: tile 1 is 0, wanted an integer from 1 to 8"),
        (ROW.replace("float16", "half"), r"dtypes of .*: tile 1 is \['half'\], wanted a list of float64, .*"),
        (ROW.replace('"it is a test"', '" "'), "reason of .*: tile 1 is ' ', wanted words"),
        (ROW + ROW, "has matmul sm_90 float16 twice, wanted it once"),
        ('[[split]]\non = ["sm_90"]\nprograms = 0\nreason = "a"\n', "programs of .*: split 1 is 0, wanted a .*"),
    ],
)
def test_an_error_in_a_file_is_one_line(written, text, message):
    file = written(text)
    with pytest.raises(ValueError) as caught:
        table()
    line = str(caught.value)
    assert line.startswith("tiles: ")
    assert str(file) in line
    assert "\n" not in line
    assert re.search(message + "$", line), line


def test_a_file_that_is_not_there(written, monkeypatch, tmp_path):
    written(ROW)
    monkeypatch.setenv("GRADLAB_TILES", str(tmp_path / "gone.toml"))
    with pytest.raises(ValueError, match=r"^tiles: GRADLAB_TILES is '.*gone.toml', wanted a file of tiles$"):
        table()
    # Empty: the package's rows alone. Without it, where users have such files.
    monkeypatch.setenv("GRADLAB_TILES", "")
    assert tiles.users_file() is None
    monkeypatch.delenv("GRADLAB_TILES")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert tiles.users_file() is None
    (tmp_path / "gradlab").mkdir()
    (tmp_path / "gradlab" / "tiles.toml").write_text(ROW)
    assert tiles.users_file() == tmp_path / "gradlab" / "tiles.toml"


def test_a_user_without_a_home_or_in_anothers_has_no_file(monkeypatch):
    """As in a container: its user may be unknown, or HOME be root's, which nobody else may look into."""
    monkeypatch.delenv("GRADLAB_TILES", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)

    def forbidden(file):
        raise PermissionError(13, "Permission denied", str(file))

    with monkeypatch.context() as patched:
        patched.setattr(tiles.Path, "is_file", forbidden)
        assert tiles.users_file() is None

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(tiles.Path, "home", unknown)
    assert tiles.users_file() is None
    with pytest.raises(ValueError, match=r"^tiles: HOME is not set, wanted it, XDG_CONFIG_HOME or GRADLAB_TILES$"):
        tiles.default_file()


def test_launches_have_the_tiles_of_the_architecture_they_are_found_for(monkeypatch):
    torch = pytest.importorskip("torch")
    from gradlab.kernels.common.matmul_triton import matmul_into
    from gradlab.kernels.runtime.launch_triton import gpu_sizes, recording
    from gradlab.kernels.spec import spec
    from gradlab.profiling.emulate.launches_torch import emulated
    from gradlab.profiling.machine_code.inspection import InspectRequest, InspectSubject, case_of, read
    from gradlab.profiling.machine_code.targets import TARGETS

    a, b, y = torch.ones(64, 40), torch.ones(40, 64), torch.empty(64, 64)
    op = spec("linear")
    with trying(Row("matmul", ("sm_80",), ("float32",), 32, 16, 16, "it is a test", warps=2, stages=4)):
        for arch, programs in (("sm_80", 8), ("sm_90", 1), ("cuda", 1)):
            with recording(arch) as launches:
                matmul_into(y, a, b, None)
            assert launches[0].grid == (programs,)
            assert (launches[0].warps, launches[0].stages) == ((2, 4) if arch == "sm_80" else (4, 3))
        emulations = []
        with emulated(TARGETS["sm_80"], emulations.append):
            matmul_into(y, a, b, None)
        assert emulations[0].grid == (8, 1, 1)
        grids: list = []
        monkeypatch.setattr(
            "gradlab.kernels.common.matmul_triton.launch", lambda jit, grid, *a, **k: grids.append(grid)
        )
        for sizes in (gpu_sizes("sm_80"), gpu_sizes(), contextlib.nullcontext()):
            with sizes:
                matmul_into(y, a, b, None)
        assert grids == [[8], [1], [1]]
        monkeypatch.undo()
        subject = InspectSubject(op, case_of(op, "square"), "torch", "float32")
        codes = list(read(InspectRequest((subject,), (TARGETS["sm_80"], TARGETS["sm_90"]), size=False)))
    tiles_of = {(c.arch, c.options["BM"], c.options["warps"]) for c in codes if c.kernel == "matmul"}
    assert tiles_of == {("sm_80", "32", "2"), ("sm_90", "64", "4")}


@pytest.mark.parametrize(
    ("arch", "rows", "wanted"), [("sm_80", 1024, (32, 256)), ("sm_90", 1024, (64, 128)), ("sm_90", 2048, (64, 256))]
)
def test_products_of_tiles_enough_take_large_tiles(arch, rows, wanted):
    torch = pytest.importorskip("torch")
    from gradlab.kernels.common.tiles_triton import tile
    from gradlab.kernels.runtime.launch_triton import recording

    with recording(arch):
        found = tile("matmul", torch.empty(1, dtype=torch.bfloat16), rows, 64, 2048)
    assert found[:3] == (128, *wanted)
    with recording("cpu"):
        found = tile("matmul", torch.empty(1), 1024, 64, 1024)
    assert (found.M, found.N) == (256, 256)


def test_tiles_fit_in_the_shared_memory_of_small_gpus():
    """A masked operand takes the most: of 100 KiB a block has 99 on sm_86 and sm_89."""
    torch = pytest.importorskip("torch")
    from gradlab.kernels.common.matmul_triton import matmul_into
    from gradlab.kernels.runtime.launch_triton import recording
    from gradlab.profiling.machine_code.compile_triton import compiled
    from gradlab.profiling.machine_code.found import Found
    from gradlab.profiling.machine_code.launches_torch import source
    from gradlab.profiling.machine_code.targets import RESERVED, TARGETS

    where, a = TARGETS["sm_86"], torch.empty(2048, 2048, dtype=torch.bfloat16)
    with recording(where.name) as launches:
        for masked in "ab":
            matmul_into(a, a, a, None, a, masked)
    for launch in launches:
        found = Found("", 1, "", launch.grid, launch.warps, launch.stages, source(launch), "", 0)
        assert 0 < compiled(found, where).shared <= where.shared - RESERVED
