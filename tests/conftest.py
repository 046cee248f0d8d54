"""What every test shares: deterministic examples, and the device that torch's tests run on."""

import gc
import hashlib
import importlib.util
import os
import shutil
import signal
import sys
import time
import types
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as cores already: threads of one would only wait for those of another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Seconds after which compiled programs are thrown away.
STALE = 24 * 3600
COMPILED = Path(__file__).parents[1] / ".pytest_cache"


def _folder(name):
    """This checkout's folder of compiled programs, without its oldest entries; all processes share it."""
    folder = COMPILED / name
    folder.mkdir(parents=True, exist_ok=True)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        for old in folder.iterdir():
            if time.time() - old.stat().st_mtime > STALE:
                shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
    return folder


def _kernels() -> str:
    """The folder of compiled kernels of this state of the CPU's compiler."""
    digest = hashlib.sha256()
    for path in sorted((COMPILED.parent / "gradlab/kernels/cpu").glob("*.py")):
        digest.update(path.read_bytes())
    folder = _folder("triton") / digest.hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    os.utime(folder)
    return str(folder)


# A kernel is compiled once, not in each process and each run; Triton moves a whole file to its place.
if not os.environ.get("TRITON_CACHE_DIR"):
    os.environ["TRITON_CACHE_DIR"] = _kernels()

# So is a program of jax, by its text: two thirds of what a run takes that another one preceded. jax does not move a
# whole file to its place; half of one is a warning, which pyproject.toml lets pass, and compiled anew.
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_folder("jax"))
    # However quickly it was compiled, and however small it is.
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}

# Triton's dialect in jaxlib has no module of its own. MLIR looks for one again at each operation of a kernel that is
# lowered, and behind pytest's hook for imports that is a third of the time; an empty one is found once.
sys.modules.setdefault("jaxlib.mlir.dialects.tt", types.ModuleType("tt"))

# A suite that a script starts in the background is born deaf to Ctrl-C, and so would be what its tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    # What collecting imported stays to the end: looking through it again and again for garbage costs one part in 15.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


settings.register_profile("lab", deadline=None, derandomize=True, max_examples=15, database=None)
settings.load_profile("lab")


@pytest.fixture(scope="session")
def device():
    """CUDA where there is one, so that the same tests run the kernels compiled."""
    torch = pytest.importorskip("torch")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _seeded():
    if importlib.util.find_spec("torch"):
        import torch

        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _planned_anew():
    """A test that changes a tile or a kernel is not answered by a plan that another one made."""
    if "gradlab.kernels.runtime.plans_triton" in sys.modules:
        sys.modules["gradlab.kernels.runtime.plans_triton"].forget()


@pytest.fixture(scope="module")
def triton_cpu(tmp_path_factory):
    """Triton's back end `cpu` is active, with a cache of the module's own."""
    import triton
    from triton.backends import Backend, backends
    from triton.runtime.driver import driver

    from gradlab.kernels.cpu.compiler import CPUBackend
    from gradlab.kernels.cpu.driver import CPUDriver

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends, "cpu", Backend(CPUBackend, CPUDriver))
        patch.setattr(triton.knobs.cache, "dir", str(tmp_path_factory.mktemp("kernels")))
        patch.setattr(triton.knobs.cache, "manager_class", None)
        before = driver._active
        driver.set_active(CPUDriver())
        yield
        # From Triton 3.8 on a kernel asks the active driver to unload it: it has to go before the driver does.
        gc.collect()
        driver._active = before


@pytest.fixture
def compiled(monkeypatch):
    """The LLVM IR of every kernel that the CPU's compiler made machine code of so far."""
    from gradlab.kernels.cpu import machine

    found, real = [], machine.object_code

    def noted(ir, host):
        found.append(ir)
        return real(ir, host)

    monkeypatch.setattr(machine, "object_code", noted)
    return found


@pytest.fixture
def blocks_of(monkeypatch):
    """A function of (platform, modules of kernels): from then on they interpret that platform's blocks.

    It gives the list of grids, which every launch adds to.
    """

    def use(platform, *modules):
        import jax
        from jax.experimental import pallas as pl

        grids, real = [], pl.pallas_call

        def interpreted(*args, **options):
            grids.append(options["grid"])
            return real(*args, **{**options, "interpret": True, "compiler_params": None})

        monkeypatch.setattr(pl, "pallas_call", interpreted)
        # A program compiled before has the CPU's blocks, and one compiled now is nobody else's.
        jax.clear_caches()
        for module in modules:
            monkeypatch.setattr(module, "launch", lambda call, *operands: call(platform, *operands))
        return grids

    yield use
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
