"""Compiles and reads the kernels of ops, on both sides, for architectures that need not be present."""

import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradlab.autodiff.arguments.errors import FLOATS
from gradlab.autodiff.frameworks.side import selected
from gradlab.kernels.bounds import Bound
from gradlab.kernels.spec import Case, Spec, spec, specs
from gradlab.profiling.machine_code import amdgcn, sass
from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.counts import Counts
from gradlab.profiling.machine_code.executed import first_program
from gradlab.profiling.machine_code.found import PARSER, Binary, Found
from gradlab.profiling.machine_code.gpus import Ceilings, floor, gpu, gpu_for
from gradlab.profiling.machine_code.targets import CPU, Target, occupancy, target
from gradlab.profiling.machine_code.tools import tool

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class InspectSubject:
    """A case of an op on one side in one dtype: what launches are looked for in.

    Attributes:
        find: finds them in a function that is no op of the package.
        bounds: those that speak of what its kernels execute; the first program of these is executed.
    """

    op: Spec
    case: Case
    side: str
    dtype: str
    find: Callable[[], list[Found]] | None = None
    bounds: tuple[Bound, ...] = ()

    def executes(self, kernel: str, arch: str) -> bool:
        """Whether a bound wants the kernel executed."""
        return any(arch in b.archs and (not b.kernels or kernel in b.kernels) for b in self.bounds)


@dataclass(frozen=True)
class InspectRequest:
    """What to compile and how to read it.

    Attributes:
        subjects: the cases whose launches are inspected.
        targets: the architectures.
        gpu: the GPU for waves and minimum time, if it has the architecture; else the architecture's default one.
        ceilings: by architecture, measured ones in place of a datasheet's.
        lines: whether instructions are counted by source line, which assembles inlined kernels once more.
        executed: whether the first program of each launch on torch is executed, as a GPU would.
        size: whether the size of a CPU's code is determined, which compiles it once more.
    """

    subjects: tuple[InspectSubject, ...]
    targets: tuple[Target, ...]
    gpu: str | None = None
    ceilings: Mapping[str, Ceilings] | None = None
    lines: bool = False
    executed: bool = False
    size: bool = True


def inspect(
    ops: Sequence[str] | None = None,
    *,
    sides: Sequence[str] | None = None,
    archs: Sequence[str] = ("sm_90",),
    dtypes: Sequence[str] = ("bfloat16",),
    case: str | None = None,
    gpu: str | None = None,
    ceilings: Mapping[str, Ceilings] | None = None,
    lines: bool = True,
) -> list[Code]:
    """Every kernel of the ops, compiled and read; no GPU is needed.

    Args:
        ops: names, or None for every op.
        sides: "torch", "jax" or both; None for all that are installed. jax is left out where Pallas is not lowered to
            Triton: on AMD's architectures and on CPUs.
        archs: sm_80, sm_86, sm_89, sm_90, sm_100, gfx942; native, x86-64-v3, sapphirerapids, neoverse-v2.
        dtypes: float64, float32, float16, bfloat16.
        case: a case of the ops by name; None for the largest of each.
        gpu: the GPU for waves and minimum time; None for the default one of each architecture.
        ceilings: by architecture, measured ones in place of a datasheet's.
        lines: count instructions by source line too.

    Raises:
        ValueError: an unknown op, side, architecture, dtype, case or GPU.
        ModuleNotFoundError: a side, Triton or one of its tools is not installed.
    """
    subjects = choose([spec(name) for name in ops] if ops is not None else list(specs().values()), sides, dtypes, case)
    return list(read(InspectRequest(subjects, targets(archs, gpu), gpu, ceilings, lines)))


def inspect_function(
    fn: Callable[..., Any], *args: Any, archs: Sequence[str] = ("sm_90",), gpu: str | None = None, lines: bool = True
) -> list[Code]:
    """The Triton kernels of anybody's torch function, compiled and read; no GPU is needed.

    The function is called once, with launches of `kernel[grid](...)` noted and not run, so results hold no values.
    Where the results have a gradient, its backward is called in the same way.

    Args:
        fn: the function; kernels under `triton.autotune` are not found, call it without.
        args: what it is called with. What requires a gradient is differentiated.
        archs: sm_80, sm_86, sm_89, sm_90, sm_100, gfx942; native, x86-64-v3, sapphirerapids, neoverse-v2.
        gpu: whose waves are worked out; None for a usual one of each architecture.
        lines: count instructions by source line too.

    Raises:
        ValueError: an unknown architecture or GPU.
        ModuleNotFoundError: torch, Triton or one of its tools is not installed.
    """
    return list(read(InspectRequest((function(fn, args),), targets(archs, gpu), gpu, None, lines)))


def function(fn: Callable[..., Any], args: Sequence[Any]) -> InspectSubject:
    """Anybody's torch function as what launches are looked for in; it is called here."""
    own = importlib.import_module("gradlab.profiling.machine_code.own_torch")
    name = getattr(fn, "__name__", type(fn).__name__)
    op = Spec(name, "", "x[E] -> y[E]", (), fn, lambda sizes, **options: {}, ())
    found = own.find(fn, tuple(args))
    return InspectSubject(op, Case("given", {}), "torch", own.dtype_of(args), lambda: found)


def choose(
    ops: Sequence[Spec], sides: Sequence[str] | None, dtypes: Sequence[str], case: str | None
) -> tuple[InspectSubject, ...]:
    """The subjects of these ops, sides, dtypes and case, each validated."""
    for name in dtypes:
        if name not in FLOATS:
            raise ValueError(f"inspect: dtype is {name!r}, wanted one of {', '.join(FLOATS)}")
    named = selected(sides)
    if importlib.util.find_spec("triton") is None:
        raise ModuleNotFoundError("inspect needs triton, which compiles the kernels of both sides: pip install triton")
    return tuple(
        InspectSubject(op, case_of(op, case), side, dtype)
        for op in ops
        if case is None or len(ops) == 1 or any(c.name == case for c in op.cases)
        for side in named
        for dtype in dict.fromkeys(dtypes)
    ) or _no_case(case)


def case_of(op: Spec, name: str | None) -> Case:
    """The op's case of that name; without one the last, its largest.

    Raises:
        ValueError: it has none of that name.
    """
    found = next((c for c in op.cases if c.name == name), None) if name is not None else op.cases[-1]
    if found is None:
        raise ValueError(
            f"inspect: case is {name!r}, wanted one of {', '.join(c.name for c in op.cases)} for {op.name}"
        )
    return found


def targets(archs: Sequence[str], named: str | None) -> tuple[Target, ...]:
    """The architectures by name, and a GPU among them."""
    found = tuple(target(name) for name in dict.fromkeys(archs))
    if named is not None and gpu(named).arch not in archs:
        raise ValueError(f"inspect: gpu is {gpu(named).name} of {gpu(named).arch}, wanted a GPU of {', '.join(archs)}")
    for name in ("ptxas", "cuobjdump", "nvdisasm") if any(t.backend == "cuda" for t in found) else ():
        tool(name)
    if any(isinstance(t, CPU) for t in found) and importlib.util.find_spec("llvmlite") is None:
        names = ", ".join(t.name for t in found if isinstance(t, CPU))
        raise ModuleNotFoundError(f"inspect needs llvmlite, which compiles for {names}: pip install 'gradlab[torch]'")
    return found


def read(wanted: InspectRequest) -> Iterator[Code]:
    """Compile and read, in the order of subjects, kernels and architectures; a kernel that fails has an error and no
    numbers.

    Launches are found on this thread, compiled and disassembled on one thread per core.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores)
    try:
        ahead: list[Future[list[Code]]] = []
        for subject in wanted.subjects:
            # Pallas is lowered for CUDA: it has no kernels for the others.
            where = [t for t in wanted.targets if subject.side == "torch" or t.backend == "cuda"]
            begun: list[Future[list[Code]]] = []
            for device, there in _devices(subject, where).items():
                try:
                    found = find(subject, device)
                except Exception as error:
                    begun += [pool.submit(_lost, subject, t, error) for t in there]
                    continue
                for t in there:
                    if isinstance(t, CPU):
                        begun += [pool.submit(_assembled, wanted, subject, f, t) for f in found]
                    else:
                        compiled = [pool.submit(_compiled, wanted, subject, f, t) for f in found]
                        # Submitted after them, so that waiting for a compiler does not block the thread it needs.
                        begun.append(pool.submit(_read, wanted, subject, t, found, compiled))
            for done in ahead:
                yield from done.result()
            ahead = begun
        for done in ahead:
            yield from done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _devices(subject: InspectSubject, where: Sequence[Target]) -> dict[str, list[Target]]:
    """The architectures by whose launches they compile: on torch each has its own tiles, all CPUs have the same."""
    found: dict[str, list[Target]] = {}
    for t in where:
        device = "cpu" if isinstance(t, CPU) else t.name if subject.side == "torch" else "cuda"
        found.setdefault(device, []).append(t)
    return found


def find(subject: InspectSubject, device: str = "cuda") -> list[Found]:
    """The kernels that it launches on "cuda" or, on torch, on "cpu" or on an architecture."""
    if subject.find is not None:
        return subject.find()
    module = importlib.import_module(f"gradlab.profiling.machine_code.launches_{subject.side}")
    with PARSER:
        return module.find(subject.op.at(subject.case), subject.dtype, *([device] if device != "cuda" else []))


def _blank(subject: InspectSubject, found: Found, where: Target) -> dict[str, Any]:
    """The facts of a kernel known before it is compiled."""
    file = str(Path(found.file).resolve().relative_to(ROOT)) if Path(found.file).is_relative_to(ROOT) else found.file
    return {
        "op": subject.op.name,
        "case": subject.case.name,
        "side": subject.side,
        "dtype": subject.dtype,
        "arch": where.name,
        "kernel": found.kernel,
        "variant": found.variant,
        "direction": found.direction,
        "grid": found.grid,
        "file": file,
        "line": found.line,
        "options": found.options,
    }


def _assembled(wanted: InspectRequest, subject: InspectSubject, found: Found, where: CPU) -> list[Code]:
    """A kernel for a CPU."""
    blank = _blank(subject, found, where)
    try:
        compiler = importlib.import_module("gradlab.profiling.machine_code.compile_cpu_triton")
        return [Code(**blank, **compiler.facts(found.source, where, wanted.lines, wanted.size))]
    except Exception as error:
        return [Code(**blank, error=_words(error))]


def _compiled(wanted: InspectRequest, subject: InspectSubject, found: Found, where: Target) -> Any:
    """A kernel for a GPU and what is known of it before it is disassembled, or the exception."""
    try:
        made = importlib.import_module("gradlab.profiling.machine_code.compile_triton").compiled(found, where)
        return made, _machine(wanted, subject, found, where, made)
    except Exception as error:
        return error


def _read(
    wanted: InspectRequest,
    subject: InspectSubject,
    where: Target,
    found: Sequence[Found],
    compiled: Sequence[Future[Any]],
) -> list[Code]:
    """The kernels of a subject on one GPU."""
    made = [future.result() for future in compiled]
    try:
        counted = iter(_counted([m[0] for m in made if not isinstance(m, Exception)], where))
    except Exception as error:
        made, counted = [error] * len(made), iter(())
    codes = []
    for f, m in zip(found, made, strict=True):
        blank = _blank(subject, f, where)
        blank["options"] = {**f.options, "warps": str(f.warps), "stages": str(f.stages)}
        if isinstance(m, Exception):
            codes.append(Code(**blank, error=_words(m)))
        else:
            facts, lines = m[1]
            counts = replace(next(counted), lines=lines)
            codes.append(Code(**blank, **facts, counts=counts, **_least(wanted, subject, f.direction, where)))
    return codes


def _counted(made: Sequence[Any], where: Target) -> list[Counts]:
    """Instructions of each kernel."""
    if where.backend != "cuda":
        return [amdgcn.count(m.assembly) for m in made]
    return sass.read([m.code for m in made], sass.machine(made[0].assembly, where)) if made else []


def _lost(subject: InspectSubject, where: Target, error: Exception) -> list[Code]:
    """In place of the kernels of a subject whose launches are not found."""
    s = subject
    return [Code(s.op.name, s.case.name, s.side, s.dtype, where.name, "?", 1, "", (), error=_words(error))]


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _machine(
    wanted: InspectRequest, subject: InspectSubject, found: Found, where: Target, made: Binary
) -> tuple[dict[str, Any], dict[int, int]]:
    """What the machine code needs, how it fills a multiprocessor, and its instructions by line where that is wanted."""
    file, lines = found.file if wanted.lines else "", {}
    if where.backend == "cuda":
        registers, stack, static = sass.resources(made.code, where)
        if file:
            # Another line table may change the code by an instruction: count the code that Triton runs.
            relined = sass.relined(made.assembly, file)
            lines = sass.lines(made.code if relined == made.assembly else sass.assembled(relined, where), file)
    else:
        registers, stack, static = amdgcn.resources(made.assembly)
        if file:
            lines = dict(amdgcn.count(made.assembly, file).lines)
    full = occupancy(where, registers, made.threads, made.shared + static)
    executed = where.backend == "cuda" and (wanted.executed or subject.executes(found.kernel, where.name))
    call = found.call if executed else None
    machine = gpu_for(where, wanted.gpu)
    return {
        "threads": made.threads,
        "registers": registers,
        "stack": stack,
        "shared_static": static,
        "shared_dynamic": made.shared,
        "executed": first_program(call, made, where, found.file) if call else None,
        "gpu": machine.name,
        "blocks": full.blocks if full else None,
        "occupancy": full.share if full else None,
        "limiter": full.limiter if full else "",
        "waves": math.prod(found.grid) / (machine.multiprocessors * full.blocks) if full and full.blocks else None,
    }, lines


def _least(wanted: InspectRequest, subject: InspectSubject, direction: str, where: Target) -> dict[str, Any]:
    """The floor of the pass, for a pass whose work the Spec states."""
    at = subject.op.at(subject.case)
    flops = at.flops()
    if direction not in flops:
        return {}
    ceilings = (wanted.ceilings or {}).get(where.name) or gpu_for(where, wanted.gpu).ceilings
    moved = at.bytes(subject.dtype)[direction]
    least = floor(flops[direction], moved, subject.dtype, ceilings)
    return {"floor": least.seconds, "ceiling": least.ceiling, "least_bytes": moved}


def _no_case(name: str | None) -> tuple[InspectSubject, ...]:
    raise ValueError(f"inspect: case is {name!r}, wanted a case of one of the ops")
