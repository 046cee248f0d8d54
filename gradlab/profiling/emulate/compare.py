"""Runs an op's passes, or anybody's function, on a CPU and as a GPU would, and holds the results against each other."""

import dataclasses
import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradlab.autodiff.frameworks.side import Side, as_tuple, side
from gradlab.kernels.cpu.lower import Unsupported
from gradlab.kernels.spec import OpCase
from gradlab.profiling.emulate.executed import BUDGET, execute_launch
from gradlab.profiling.emulate.launch import Launch
from gradlab.profiling.emulate.result import CaseResult, Comparison, LaunchResult
from gradlab.profiling.emulate.words import in_a_line
from gradlab.profiling.machine_code.found import passes
from gradlab.profiling.machine_code.targets import Target
from gradlab.profiling.ptx.parse import PTXError

# Elements that come from two sums in different order: each may be off by the tolerance.
_TIMES = 4
_ROUNDING = {"float16": 2.0**-11, "tf32": 2.0**-11, "bfloat16": 2.0**-8}
# Faults that would end or stop this process too.
_UNSAFE = {"out of bounds", "deadlock", "failed assertion"}


@dataclass(frozen=True)
class How:
    """How launches are executed.

    Attributes:
        where: the architecture that they are compiled for.
        budget: the most instructions of warps that one launch may take.
        options: of `gradlab.profiling.ptx.execute.execute`: order, landing, what is counted and looked for.
    """

    where: Target
    budget: int = BUDGET
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def order(self) -> str:
        """The order of warps."""
        return str(self.options.get("order", "together"))


def emulated(name: str, where: Target, run: Callable[[Launch], None]) -> AbstractContextManager[None]:
    """Within it `run` gets every launch on one side, compiled for a GPU."""
    module: Any = importlib.import_module(f"gradlab.profiling.emulate.launches_{name}")
    return module.emulated(where, run)


def op_case(at: OpCase, name: str, dtype: str, how: How, second: bool = False, seed: int = 0) -> CaseResult:
    """An op's forward and backward, and its second backward if wanted, at one case.

    Args:
        name: the side, "torch" or "jax".
    """
    framework = side(name)
    with framework.double() if dtype == "float64" else framework.single():
        inputs = [framework.put(a, dtype) for a in at.make(seed).values()]
        rng = np.random.default_rng(seed)
        cotangents = [framework.put(rng.standard_normal(a.shape(at.sizes)), dtype) for a in at.results]
        seconds = [framework.put(rng.standard_normal(np.shape(inputs[i])), dtype) for i in at.wrt]
        wanted = [p for p in passes(at, framework) if second or p[0] != "second"]
        allowed = _TIMES * at.tolerance(dtype)
        todo = [(d, lambda run=run: run(inputs, cotangents, seconds), _names(at, d)) for d, run in wanted]

        def exact(direction: str) -> list[np.ndarray]:
            with framework.double():
                groups = [
                    [framework.put(framework.take(x), "float64") for x in group]
                    for group in (inputs, cotangents, seconds)
                ]
                run = dict(passes(at, framework))[direction]
                return [framework.take(y) for y in as_tuple(run(*groups))]

        half = exact if dtype in ("float16", "bfloat16") else None
        return _compared(framework, at.spec.name, at.case.name, dtype, how, todo, allowed, exact=half)


def _names(at: OpCase, direction: str) -> list[str]:
    if direction == "forward":
        return [a.name for a in at.results]
    gradients = [f"gradient of {at.inputs[i].name}" for i in at.wrt]
    return gradients if direction == "backward" else [f"second {g}" for g in gradients]


def function(fn: Callable[..., Any], args: Sequence[Any], name: str, called: str, dtype: str, how: How) -> CaseResult:
    """Anybody's function: its results, the arguments that it changes, and the gradients of those that require one."""
    framework = side(name)

    cotangents: list[Any] = []
    moving = [i for i, a in enumerate(args) if getattr(a, "requires_grad", False)]

    def of_arrays(*given: Any) -> tuple[Any, ...]:
        return tuple(y for y in as_tuple(fn(*given)) if framework.is_array(y))

    def forward() -> tuple[Any, ...]:
        mine = [_copy(a) for a in args]
        results = as_tuple(fn(*mine))
        arrays = [y for y in results if framework.is_array(y)]
        if any(getattr(y, "requires_grad", False) for y in arrays):
            rng = np.random.default_rng(0)
            cotangents[:] = [framework.put(rng.standard_normal(y.shape), framework.dtype(y), y) for y in arrays]
        return (*arrays, *[a for a in mine if framework.is_array(a)])

    def backward() -> tuple[Any, ...]:
        if not cotangents:
            return ()
        # Copies: a backward may be written to change its cotangents.
        return framework.pullback(of_arrays, moving)([_copy(a) for a in args], [_copy(a) for a in cotangents])

    names = [f"argument {i}" for i, a in enumerate(args) if framework.is_array(a)]
    todo: list[tuple[str, Callable[[], Any], list[str]]] = [("forward", forward, names)]
    if moving:
        todo.append(("backward", backward, [f"gradient of argument {i}" for i in moving]))
    # A function whose sums nobody knows: a rounding of each of a thousand terms.
    allowed = _TIMES * (1000 * 2.0**-24 + _ROUNDING.get(dtype, 2.0**-24))
    todo = [(direction, _told(run, called), names) for direction, run, names in todo]
    result = _compared(framework, called, "", dtype, how, todo, allowed, coarse=True)
    if result.launches or result.error:
        return result
    error = f"emulate: {called} launches no program of a Triton kernel, wanted a function that does"
    return dataclasses.replace(result, error=error)


def _told(run: Callable[[], Any], called: str) -> Callable[[], Any]:
    """A function's run; what it raises in one line."""

    def told() -> Any:
        try:
            return run()
        except (PTXError, Unsupported):
            raise
        except Exception as error:
            wanted = "a function that runs on tensors of a CPU"
            raise PTXError(f"emulate: {called} raised {in_a_line(error)}, wanted {wanted}") from error

    return told


def _copy(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if hasattr(value, "detach") else value


def _compared(
    framework: Side,
    op: str,
    case: str,
    dtype: str,
    how: How,
    todo: Sequence[tuple[str, Callable[[], Any], list[str]]],
    allowed: float,
    coarse: bool = False,
    exact: Callable[[str], list[np.ndarray]] | None = None,
) -> CaseResult:
    """The passes, each by a GPU's code and on the CPU.

    Args:
        coarse: what kernels multiply as tf32, which the CPU does not round to, may be off by its rounding too.
        exact: a pass in float64, where a result in half precision is past what is allowed: its terms may cancel.
    """
    launches: list[LaunchResult] = []
    comparisons: list[Comparison] = []
    start, error, unheld = time.perf_counter(), "", ""
    try:
        for direction, run, names in todo:

            def one(launch: Launch, direction: str = direction) -> None:
                launches.append(execute_launch(launch, how.where, framework.name, direction, how.budget, how.options))

            with emulated(framework.name, how.where, one):
                got = [framework.take(y) for y in as_tuple(run())]
            # The CPU runs last, and only what it can run: it watches no access, and would wait for ever.
            if kinds := sorted({f.kind for launch in launches for f in launch.executed.faults} & _UNSAFE):
                unheld = f"the CPU does not run what has such a fault: {', '.join(kinds)}"
                break
            try:
                want = [framework.take(y) for y in as_tuple(run())]
            except Unsupported as reason:
                unheld = in_a_line(reason)
                continue
            words = [*[f"result {i}" for i in range(len(want) - len(names))], *names[: len(want)]]
            rounded = coarse and any(".tf32" in launch.ptx for launch in launches)
            held = list(_held(words, got, want, allowed + _TIMES * _ROUNDING["tf32"] * rounded))
            if exact is not None and not all(c.ok for c in held):
                both = zip(held, got, want, exact(direction), strict=True)
                held = [c if c.ok else _no_worse(c, *arrays) for c, *arrays in both]
            comparisons += held
    except PTXError as problem:
        error = str(problem)
    seconds = time.perf_counter() - start
    return CaseResult(
        op,
        case,
        framework.name,
        dtype,
        how.where.name,
        how.order,
        tuple(launches),
        tuple(comparisons),
        seconds,
        error,
        unheld,
    )


def _no_worse(c: Comparison, got: np.ndarray, want: np.ndarray, right: np.ndarray) -> Comparison:
    """Held against float64: at most twice as far from it as the CPU's result in the same precision."""
    if not np.isfinite(c.largest):
        return c
    finite = np.isfinite(right) & np.isfinite(want)
    error, usual = (float(np.abs(y[finite] - right[finite]).max(initial=0.0)) for y in (got, want))
    limit = c.allowed + 2 * usual
    return Comparison(c.what, error, limit, error <= limit)


def _held(
    names: Sequence[str], got: Sequence[np.ndarray], want: Sequence[np.ndarray], allowed: float
) -> Iterator[Comparison]:
    """Each result against what it should be, relative to its largest element."""
    for name, g, w in zip(names, got, want, strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        finite = np.isfinite(w)
        same = np.array_equal(g[~finite], w[~finite], equal_nan=True)
        size = float(np.abs(w[finite]).max(initial=0.0))
        with np.errstate(invalid="ignore"):
            largest = float(np.abs(g[finite] - w[finite]).max(initial=0.0))
        if not same or np.isnan(largest):
            largest = np.nan
        limit = allowed * size
        yield Comparison(name, largest, limit, bool(largest <= limit))
