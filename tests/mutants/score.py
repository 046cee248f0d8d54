"""The score of checkers on the corpus: ours, torch's gradcheck in both modes, jax's check_grads."""

import argparse
import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

import gradlab
from gradlab.autodiff.checker.report import Report
from gradlab.autodiff.frameworks.side import installed
from gradlab.autodiff.frameworks.side import side as side_of
from tests.mutants.corpus import CONTROLS, KINDS, CheckSubject, load

SIZE = 8


@dataclass
class Score:
    """Of one tool: how many of each kind it called wrong, which it did not, and its seconds."""

    caught: dict[str, int] = field(default_factory=dict)
    missed: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0

    def take(self, subject: CheckSubject, wrong: bool) -> None:
        """Count one subject."""
        self.caught[subject.kind] = self.caught.get(subject.kind, 0) + wrong
        if not wrong:
            self.missed.setdefault(subject.kind, []).append(subject.name)


def arguments(subject: CheckSubject, seed: int, size: int = SIZE) -> list:
    """The subject's inputs as its side's arrays, in its dtype; jax needs `side.double()` around it."""
    side = side_of(subject.side)
    return subject.given([side.put(a, subject.dtype) for a in subject.make(np.random.default_rng(seed), size)])


def ours(subject: CheckSubject, seed: int, size: int = SIZE, parts: Sequence[str] | None = None) -> Report:
    """The lab's report on a subject, by some of its parts or all."""
    with side_of(subject.side).double():
        args = arguments(subject, seed, size)
        return gradlab.check(
            subject.fn,
            *args,
            reference=subject.reference,
            order=subject.order,
            seed=seed,
            raises=False,
            parts=parts,
            sizes=subject.sizes,
        )


def says_wrong(report) -> bool:
    """Whether any finding is wrong; one that is only inconclusive is not."""
    return any(f.verdict == "wrong" for f in report.findings)


def gradcheck(fast: bool) -> Callable[[CheckSubject, int], bool]:
    """torch.autograd.gradcheck, and gradgradcheck at order 2; an exception of the function counts as wrong."""

    def run(subject: CheckSubject, seed: int) -> bool:
        import torch

        args = [a.detach().requires_grad_() if a.is_floating_point() else a for a in arguments(subject, seed)]
        try:
            torch.autograd.gradcheck(subject.fn, args, fast_mode=fast)
            if subject.order == 2:
                torch.autograd.gradgradcheck(subject.fn, args, fast_mode=fast)
        except Exception:
            return True
        return False

    return run


def check_grads(subject: CheckSubject, seed: int) -> bool:
    """jax.test_util.check_grads in reverse mode at the subject's order; an exception counts as wrong."""
    import jax
    from jax.test_util import check_grads as native

    with jax.enable_x64(True):
        args = arguments(subject, seed)
        moving = [i for i, a in enumerate(args) if jax.numpy.issubdtype(a.dtype, jax.numpy.floating)]

        def of(*values):
            full = list(args)
            for i, value in zip(moving, values, strict=True):
                full[i] = value
            return subject.fn(*full)

        try:
            native(of, [args[i] for i in moving], order=subject.order, modes=("rev",))
        except Exception:
            return True
        return False


TOOLS: dict[str, dict[str, Callable[[CheckSubject, int], bool]]] = {
    "torch": {
        "gradlab.check": lambda s, seed: says_wrong(ours(s, seed)),
        "gradcheck, full": gradcheck(False),
        "gradcheck, fast_mode": gradcheck(True),
    },
    "jax": {"gradlab.check": lambda s, seed: says_wrong(ours(s, seed)), "check_grads, float64": check_grads},
}


def score(side: str, seeds: Sequence[int], console: Console) -> dict[str, Score]:
    """Every tool on every subject of a side; caught means on every seed, a false alarm is one on any."""
    subjects = load(side)
    found = {tool: Score() for tool in TOOLS[side]}
    for subject in track(subjects, f"{side}: {len(subjects)} functions", console=console, transient=True):
        for tool, says in TOOLS[side].items():
            start = time.perf_counter()
            # What the functions under test print and warn of is not the score.
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                verdicts = [says(subject, seed) for seed in seeds]
            found[tool].seconds += time.perf_counter() - start
            found[tool].take(subject, any(verdicts) if subject.kind in CONTROLS else all(verdicts))
    return found


def table(side: str, found: dict[str, Score], subjects: Sequence[CheckSubject]) -> Table:
    """Caught of each kind by each tool, and false alarms on the controls."""
    total = {kind: sum(s.kind == kind for s in subjects) for kind in (*KINDS, *CONTROLS)}
    made = Table(title=f"{side}: wrong backwards caught, of how many", title_justify="left", box=box.MARKDOWN)
    made.add_column("kind")
    for tool in found:
        made.add_column(tool, justify="right")
    for kind in KINDS:
        made.add_row(kind, *(f"{s.caught.get(kind, 0)}/{total[kind]}" for s in found.values()))
    every = sum(total[k] for k in KINDS)
    made.add_row("all", *(f"{sum(s.caught.get(k, 0) for k in KINDS)}/{every}" for s in found.values()))
    for kind in CONTROLS:
        made.add_row(f"{kind}, called wrong", *(f"{s.caught.get(kind, 0)}/{total[kind]}" for s in found.values()))
    made.add_row("seconds", *(f"{s.seconds:.0f}" for s in found.values()))
    return made


def main() -> int:
    """Print the score of each side at one seed; 0 when the lab's check caught all and raised no false alarm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", action="append", choices=tuple(TOOLS), help="all that are installed when not given")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    console, met = Console(), True
    for side in given.side or installed():
        found = score(side, [given.seed], console)
        console.print(table(side, found, load(side)))
        own = found["gradlab.check"]
        missed = [name for kind in KINDS for name in own.missed.get(kind, [])]
        alarms = sum(own.caught.get(kind, 0) for kind in CONTROLS)
        if missed:
            console.print(f"gradlab.check missed: {', '.join(missed)}", soft_wrap=True)
        met &= not missed and not alarms
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
