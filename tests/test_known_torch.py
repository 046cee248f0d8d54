"""Kernels that are found on disk without Triton's own look-up, and when they are not."""

import os

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("llvmlite")

import triton.language as tl
from triton import knobs
from triton.runtime.jit import JITFunction

from gradlab.kernels.cpu.cache_triton import Cache
from gradlab.kernels.runtime import cache_index_triton, compiled_triton


@JITFunction
def _plus_kernel(x_ptr, B: tl.constexpr, C: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(x_ptr + i, tl.load(x_ptr + i) + C)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(knobs.cache, "manager_class", Cache)
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """How often Triton was asked."""
    times, real = [], triton.compile
    monkeypatch.setattr(triton, "compile", lambda *args, **options: times.append(1) or real(*args, **options))
    return times


def plus(number):
    """x + number, by a process that has compiled nothing yet."""
    made = compiled_triton.source(_plus_kernel, (torch.zeros(16),), {"B": 16, "C": number})
    return compiled_triton.compiled(made)


def test_a_kernel_on_disk_is_found_without_triton(asked):
    first = plus(1)
    assert plus(1) == first
    assert len(asked) == 1
    assert plus(2) != first
    assert len(asked) == 2


def test_a_kernel_that_is_gone_or_broken_is_compiled_anew(asked, folder):
    first = plus(1)
    (file,) = folder.glob("*/_plus_kernel.obj")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + b"!")
    assert plus(1) == first
    assert len(asked) == 2
    for found in file.parent.iterdir():
        found.unlink()
    assert plus(1) == first
    assert len(asked) == 3


def test_another_kernels_file_is_not_taken(asked, folder):
    first = plus(1)
    (known,) = (folder / cache_index_triton.FOLDER).iterdir()
    plus(2)
    (one,) = [
        file
        for file in folder.glob("*/_plus_kernel.obj")
        if cache_index_triton.folder_of(known.read_text()) in str(file)
    ]
    (two,) = [file for file in folder.glob("*/_plus_kernel.obj") if file != one]
    one.write_bytes(two.read_bytes())
    assert plus(1) == first
    assert len(asked) == 3
    known.write_text("no name")
    assert plus(1) == first
    assert len(asked) == 4


@pytest.mark.parametrize("knob", ["always_compile", "override", "dump_ir"])
def test_triton_is_asked_where_the_user_says_how(knob, asked, monkeypatch, folder):
    monkeypatch.setattr(knobs.cache, "dump_dir", str(folder / "dump"))
    monkeypatch.setattr(knobs.cache, "override_dir", str(folder / "override"))
    plus(1)
    with knobs.compilation.scope():
        setattr(knobs.compilation, knob, True)
        plus(1)
    assert len(asked) == 2


def test_another_cache_or_another_triton_is_not_this_one(asked, monkeypatch, tmp_path):
    plus(1)
    monkeypatch.setattr(cache_index_triton, "triton_files", lambda: "newer")
    plus(1)
    assert len(asked) == 2
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    plus(1)
    assert len(asked) == 3
    monkeypatch.setattr(knobs.cache, "manager_class", None)
    made = compiled_triton.source(_plus_kernel, (torch.zeros(16),), {"B": 16, "C": 1})
    assert cache_index_triton.key(made, compiled_triton.CPUBackend(compiled_triton.TARGET), {}) is None


def test_what_triton_reads_its_files_for_is_remembered(monkeypatch, folder):
    computed = []
    monkeypatch.setattr(triton.runtime.cache, "triton_key", lambda: computed.append(1) or "files")
    own = triton.runtime.cache.triton_key
    for times in (1, 1):
        with cache_index_triton.remembered_triton_key():
            assert triton.runtime.cache.triton_key() == "files"
        assert len(computed) == times
    assert triton.runtime.cache.triton_key is own
    monkeypatch.setattr(cache_index_triton, "triton_files", lambda: "newer")
    with cache_index_triton.remembered_triton_key():
        assert triton.runtime.cache.triton_key() == "files"
    assert len(computed) == 2


def test_triton_is_known_by_its_files(monkeypatch, tmp_path):
    cache_index_triton.triton_files.cache_clear()
    before = cache_index_triton.triton_files()
    for name in ("_C/libtriton.so", "runtime/cache.py", "compiler/code.py", "language/core.py", "backends/a/driver.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(triton, "__file__", str(tmp_path / "__init__.py"))
    seen = {before}
    for changed in (None, "_C/libtriton.so", "runtime/cache.py", "language/core.py", "backends/a/driver.py"):
        if changed is not None:
            os.utime(tmp_path / changed, (1, 1))
        cache_index_triton.triton_files.cache_clear()
        seen.add(cache_index_triton.triton_files())
    cache_index_triton.triton_files.cache_clear()
    assert len(seen) == 6


def test_a_folder_that_cannot_be_written_costs_time_alone(monkeypatch, folder):
    monkeypatch.setattr(cache_index_triton, "_path", lambda name: folder / "file" / "below" / name)
    (folder / "file").write_text("")
    first = plus(1)
    assert plus(1) == first
