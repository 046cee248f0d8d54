"""The first minute on a GPU: every kernel launched once and compared with the CPU, then the four main ops timed.

Each comparison and each group of times is on disk before the next one starts.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.autodiff.frameworks.side import Side, as_tuple
from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.base.exit_codes import FOUND, INTERRUPTED, OK
from gradlab.base.files import write_whole
from gradlab.kernels.spec import OpCase, spec, specs
from gradlab.profiling.gpu import rows
from gradlab.profiling.machine_code.found import passes

DTYPE = "float32"
# What is timed, in which dtype and mode: jax without jit traces at each call.
MAIN, TIMED = ("linear", "conv2d", "cross_entropy", "adam"), "bfloat16"
MODES = {"torch": "eager", "jax": "compiled"}


@dataclass(frozen=True)
class Row:
    """One pass of an op on the GPU beside the same on the CPU.

    Attributes:
        error: the largest difference, relative to the largest value of the CPU's.
        allowed: what rounding explains.
        problem: an error's words, or nothing.
        seconds: of the pass on the GPU, compilation included.
    """

    op: str
    case: str
    way: str
    error: float = 0.0
    allowed: float = 0.0
    problem: str = ""
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        return not self.problem and self.error <= self.allowed


def main(words: list[str] | None = None) -> int:
    """0 when all was launched and right, 1 when not, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m gradlab.profiling.gpu.smoke", description=__doc__)
    for name in ("side", "gpu", "source"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--file", type=Path, required=True, help="of the comparisons")
    parser.add_argument("--rows", type=Path, required=True, help="of the times")
    parser.add_argument("--seconds", type=float, required=True, help="for the comparisons; then times are taken")
    parser.add_argument("--ops", nargs="*", help="compare these alone; every op when not given")
    parser.add_argument("--tiny", action="store_true", help="time each op's first checked case: to try the steps")
    args = parser.parse_args(words)
    about = {"gpu": args.gpu, "source": args.source}
    try:
        right = compared(args.file, about, side_of(args.side), args.seconds, args.ops)
        groups = rows.rows(args.rows, about, args.side, TIMED, MODES[args.side], MAIN, True, args.tiny)
    except KeyboardInterrupt:
        return INTERRUPTED
    return OK if right and not rows.problems(groups) else FOUND


def compared(file: Path, about: dict[str, str], side: Side, seconds: float, ops: Sequence[str] | None = None) -> bool:
    """Whether every kernel ran and was right; the file has each comparison before the next starts.

    Args:
        seconds: what has not started by then is reported, and not compared.
        ops: these alone, whatever kernels they have.
    """
    end = time.monotonic() + seconds
    rows: list[Row] = []
    extra: Any = importlib.import_module(f"gradlab.profiling.gpu.smoke_{side.name}")
    complete = True
    with extra.counted() as launched:
        for row in _rows(side, extra, ops):
            rows.append(row)
            _write(file, about, rows, launched, False)
            if not row.right:
                print(_said(row), flush=True)
            if time.monotonic() > end:
                complete = False
                break
    missing = sorted(extra.kernels() - launched) if complete and ops is None else []
    _write(file, about, rows, launched, complete)
    wrong = [row for row in rows if not row.right]
    print(
        f"{len(rows)} passes of {len({r.op for r in rows})} ops, {len(wrong)} wrong, {len(launched)} kernels",
        flush=True,
    )
    if not complete:
        print(f"not all were reached in {seconds:.0f} s", flush=True)
    if missing:
        print(f"not launched: {', '.join(missing)}", flush=True)
    return complete and not wrong and not missing


def _rows(side: Side, extra: Any, ops: Sequence[str] | None) -> Iterator[Row]:
    """What the ops' first and last checked case does, and what no case does."""
    for op in specs().values() if ops is None else map(spec, ops):
        cases = op.select("check")
        for case in dict.fromkeys(c.name for c in (cases[0], cases[-1])):
            yield from of_case(side, extra, op.at(next(c for c in cases if c.name == case)))
    for name, call, length in extra.CALLS if ops is None else ():
        yield _row(name, "", "call", lambda where, call=call: call(where), (8 + length) * 2.0**-24, extra, 2)


def of_case(side: Side, extra: Any, at: OpCase) -> Iterator[Row]:
    """Forward, backward and second backward of a case on the same numbers."""
    arrays, rng = list(at.make().values()), np.random.default_rng(1)
    cotangents, seconds = ([rng.standard_normal(shape) for shape in shapes] for shapes in at.shapes()[1:])
    for k, (way, run) in enumerate(passes(at, side)):

        def on(where: Any, run: Any = run) -> Any:
            put = [[extra.put(np.asarray(a), DTYPE, where) for a in many] for many in (arrays, cotangents, seconds)]
            return run(*put)

        # The second pass works on what the first has rounded.
        yield _row(at.spec.name, at.case.name, way, on, at.tolerance(DTYPE), extra, 4 if k == 2 else 2)


def _row(op: str, case: str, way: str, on: Any, tolerance: float, extra: Any, factor: int) -> Row:
    """The call on both devices; each of the two may be off by the tolerance."""
    start = time.monotonic()
    try:
        gpu = [extra.take(a) for a in as_tuple(on(extra.gpu()))]
        seconds = time.monotonic() - start
        cpu = [extra.take(a) for a in as_tuple(on(extra.cpu()))]
    except Exception as error:
        return Row(op, case, way, problem=" ".join(f"{type(error).__name__}: {error}".split())[:300])
    return Row(op, case, way, max(map(_error, gpu, cpu), default=0.0), factor * tolerance, seconds=seconds)


def _error(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference relative to the largest value; what is not finite has to be the same."""
    if got.shape != wanted.shape:
        return float("inf")
    finite = np.isfinite(wanted)
    if not np.array_equal(got[~finite], wanted[~finite], equal_nan=True):
        return float("inf")
    got, wanted = got[finite], wanted[finite]
    off = float(np.abs(got - wanted).max(initial=0.0))
    scale = float(np.abs(wanted).max(initial=0.0))
    return float("inf") if np.isnan(off) else off / scale if scale else off


def _write(file: Path, about: dict[str, str], rows: Sequence[Row], launched: set[str], complete: bool) -> None:
    found = {**about, "complete": complete, "launched": sorted(launched), "rows": [asdict(row) for row in rows]}
    write_whole(file, json.dumps(found, indent=1) + "\n")


def _said(row: Row) -> str:
    what = f"{row.op}, {row.case}, {row.way}"
    return f"{what}: {row.problem}" if row.problem else f"{what}: off by {row.error:.1e}, allowed {row.allowed:.1e}"


if __name__ == "__main__":
    sys.exit(main())
