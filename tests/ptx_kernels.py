"""Small kernels of PTX: each thread loads its elements, executes a few instructions and stores what comes out."""

from dataclasses import dataclass

import numpy as np

from gradlab.profiling.ptx.execute import Executed, execute
from gradlab.profiling.ptx.global_memory import Extent
from gradlab.profiling.ptx.parse import parse

HEAD = """.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry kernel(
{parameters}
)
{{
    .reg .pred %p<64>;
    .reg .b16 %rs<256>;
    .reg .b32 %r<512>;
    .reg .b64 %rd<256>;
    .loc 1 1 0
{body}
    ret;
}}
    .file 1 "kernel.py"
"""


@dataclass
class Ran:
    """What a kernel did, and the arrays that it was given, as it left them."""

    executed: Executed
    arrays: list[np.ndarray]

    @property
    def kinds(self) -> list[str]:
        """The kinds of faults that were found."""
        return [fault.kind for fault in self.executed.faults]


def text(body: str, arrays: int) -> str:
    """A whole module around the body of a kernel whose parameters p0, p1 ... are addresses."""
    parameters = ",\n".join(f"    .param .u64 .ptr .global .align 1 p{n}" for n in range(arrays))
    return HEAD.format(parameters=parameters, body=body)


def run(body: str, *arrays: np.ndarray, threads: int = 32, grid=(1, 1, 1), shared: int = 0, **options) -> Ran:
    """Execute a body; in it p0, p1 ... are the arrays' addresses."""
    program = parse(text(body, len(arrays)))
    extents = [Extent(a.ctypes.data, a.nbytes, f"p{n}") for n, a in enumerate(arrays)]
    addresses = [a.ctypes.data for a in arrays]
    return Ran(execute(program, grid, threads, shared, addresses, extents, **options), list(arrays))


def elementwise(instruction: str, result: np.dtype, *inputs: np.ndarray) -> np.ndarray:
    """One instruction on the elements of arrays, a thread each: `{d}`, `{a}`, `{b}`, `{c}` are its registers.

    An array of bool comes as a predicate, and so does a result of bool.
    """
    n = len(inputs[0])
    out = np.zeros(n, np.uint8 if result == np.bool_ else result)
    given = [np.ascontiguousarray(x.astype(np.uint8) if x.dtype == np.bool_ else x) for x in inputs]
    body = ["mov.u32 %r100, %tid.x;", "mov.u32 %r101, %ctaid.x;", "mad.lo.s32 %r100, %r101, 32, %r100;"]
    body += [f"setp.ge.u32 %p60, %r100, {n};", "@%p60 bra $DONE;"]
    names = {}
    for letter, x, number in zip("abc", given, range(3), strict=False):
        bits = x.itemsize * 8
        names[letter] = _register(bits, number)
        body += [f"ld.param.u64 %rd{100 + number}, [p{number}];"]
        body += [f"mad.wide.u32 %rd{110 + number}, %r100, {x.itemsize}, %rd{100 + number};"]
        body += [f"ld.global.b{bits} {names[letter]}, [%rd{110 + number}];"]
        if inputs[number].dtype == np.bool_:
            body += [f"setp.ne.b16 %p{number + 1}, {names[letter]}, 0;"]
            names[letter] = f"%p{number + 1}"
    names["d"] = "%p50" if result == np.bool_ else _register(out.itemsize * 8, 50)
    body += [instruction.format(**names)]
    if result == np.bool_:
        body += ["selp.b16 %rs50, 1, 0, %p50;"]
        names["d"] = "%rs50"
    place = len(given)
    body += [f"ld.param.u64 %rd120, [p{place}];", f"mad.wide.u32 %rd121, %r100, {out.itemsize}, %rd120;"]
    body += [f"st.global.b{out.itemsize * 8} [%rd121], {names['d']};", "$DONE:"]
    ran = run("\n".join(body), *given, out, grid=(-(-n // 32), 1, 1))
    assert ran.executed.faults == []
    return out.astype(np.bool_) if result == np.bool_ else out


def _register(bits: int, number: int) -> str:
    return {8: f"%rs{number}", 16: f"%rs{number}", 32: f"%r{number}", 64: f"%rd{number}"}[bits]
