"""The lab's kernels beside those of others, compiled and executed in the same way: `gradlab inspect --peers`."""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from gradlab.kernels.spec import Case, Spec, spec
from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.found import Found
from gradlab.profiling.machine_code.inspection import InspectRequest, InspectSubject, read
from gradlab.profiling.machine_code.targets import Target


@dataclass(frozen=True)
class Compared:
    """A case that others have kernels for.

    Attributes:
        per: axes: instructions are counted for `terms` of the product of these sizes.
        words: what that is.
        peers: name -> the Python package, and the name of the function in `peers_torch.py` that finds its kernels.
    """

    op: str
    case: Case
    per: str
    terms: int
    words: str
    peers: tuple[tuple[str, str, str], ...] = ()
    paper: tuple["Paper", ...] = ()


@dataclass(frozen=True)
class Paper:
    """A kernel that is not compiled here, as its source reads.

    Attributes:
        traffic: bytes that it moves, of the least of the pass.
    """

    name: str
    direction: str
    traffic: str
    words: str


@dataclass(frozen=True)
class PeerRow:
    """A kernel of the lab or of a peer, or a peer that has none here.

    Attributes:
        who: "gradlab" or the peer's name.
        code: what it is compiled to; None where there is nothing.
        each: instructions of threads, executed in machine code, for `terms` of the case; None if not executed.
        share: the cycles of tensor cores, of the most that a part of a multiprocessor needs; None without products.
        traffic: bytes of the sectors that its programs touch, of the least of the pass.
        words: why there is no code, or what is said of it on paper.
    """

    who: str
    code: Code | None
    each: float | None = None
    share: float | None = None
    traffic: float | None = None
    words: str = ""


_CLASSES = {"has_q": False, "has_a": False}
_LIGER = ("Liger", "liger_kernel", "liger")
_INDUCTOR = ("inductor", "torch", "inductor")
# Bounds of quack's kernels (Dao-AILab/quack), which are written in CuTe, by its source.
_QUACK = Paper(
    "quack",
    "forward",
    "1.0",
    "a row lies in the shared memory of a cluster of 1 to 16 blocks: logits are read once, and the gradient written",
)
# Few rows: what is counted is the same for each, and a peer's own host code runs on real memory.
COMPARED = (
    Compared(
        "linear",
        Case("transformer", {"M": 8192, "K": 4096, "N": 4096}),
        "M K N",
        1000,
        "1000 multiply-adds",
        (_INDUCTOR,),
    ),
    *(
        Compared(
            "cross_entropy",
            Case(name, {"M": 64, "V": V}, {**_CLASSES, **options}),
            "M V",
            1,
            "logit",
            (_LIGER, _INDUCTOR),
            (_QUACK,) if not options else (),
        )
        for name, V, options in (
            ("odd rows", 50257, {}),
            ("long rows", 128256, {}),
            ("capped logits", 32768, {"softcap": 30.0}),
        )
    ),
    Compared(
        "linear_cross_entropy",
        Case("language model", {"M": 1024, "K": 1024, "V": 32000}, {"has_b": False, "has_a": False}),
        "M K V",
        1000,
        "1000 multiply-adds of the logits",
        (_LIGER,),
    ),
    Compared(
        "conv2d",
        Case("resnet", {"B": 64, "D": 128, "H": 28, "W": 28, "F": 128, "R": 3, "S": 3}, {"padding": 1, "has_b": False}),
        "B F P Q D R S",
        1000,
        "1000 multiply-adds",
        (_INDUCTOR,),
    ),
)


def compared(op: str | None) -> tuple[Compared, ...]:
    """The cases of an op, or of all.

    Raises:
        ValueError: an op that is not compared with others.
    """
    found = tuple(c for c in COMPARED if op in (None, c.op))
    if not found:
        names = ", ".join(dict.fromkeys(c.op for c in COMPARED))
        raise ValueError(f"inspect: --peers came with {op}, wanted one of {names}")
    return found


def rows(wanted: Compared, dtype: str, where: Target, gpu: str | None) -> Iterator[PeerRow]:
    """The lab's kernels of forward and backward, then each peer's."""
    op = spec(wanted.op)
    at = op.at(wanted.case)
    launches = importlib.import_module("gradlab.profiling.machine_code.launches_torch")
    peers = importlib.import_module("gradlab.profiling.machine_code.peers_torch")
    finders: list[tuple[str, Callable[[], list[Found]]]] = [("gradlab", lambda: launches.find(at, dtype))]
    for name, package, function in wanted.peers:
        if importlib.util.find_spec(package) is None:
            yield PeerRow(name, None, words=f"{package} is not installed: pip install {package.replace('_', '-')}")
            continue
        finders.append((name, functools.partial(getattr(peers, function), at, dtype)))
    for who, finder in finders:
        try:
            found = [f for f in finder() if f.direction != "second"]
        except Exception as error:
            yield PeerRow(who, None, words=" ".join(f"{type(error).__name__}: {error}".split())[:200])
            continue
        yield from _read(wanted, op, who, found, dtype, where, gpu)
    for paper in wanted.paper:
        yield PeerRow(paper.name, None, words=f"by its source: {paper.words}; {paper.traffic} of the least bytes")


def _read(
    wanted: Compared, op: Spec, who: str, found: Sequence[Found], dtype: str, where: Target, gpu: str | None
) -> Iterator[PeerRow]:
    subject = InspectSubject(op, wanted.case, "torch", dtype, lambda: list(found))
    terms = prod(op.at(wanted.case).sizes[axis] for axis in wanted.per.split())
    for code in read(InspectRequest((subject,), (where,), gpu, executed=True)):
        threads = code.threads_executed()
        yield PeerRow(
            who,
            replace(code, op=wanted.op),
            None if threads is None else threads / terms * wanted.terms,
            code.fact("tensor_share") if code.counts.tensor else None,
            code.fact("traffic"),
            code.error,
        )
