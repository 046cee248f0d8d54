"""The options of `gradlab emulate` on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from gradlab.kernels.spec import specs

Subject = Annotated[
    str | None,
    typer.Argument(
        help=f"One of {', '.join(specs())}, all of them when not given; or FILE.py::function, which launches "
        "Triton kernels; or FILE.py::kernel, with <kernel>_grid and <kernel>_args beside it."
    ),
]
Arch = Annotated[
    list[str] | None, typer.Option(help="sm_80, sm_86, sm_89, sm_90, separated by commas. sm_90 by default.")
]
Dtype = Annotated[
    list[str] | None, typer.Option(help="float64, float32, float16, bfloat16, separated by commas. float32 by default.")
]
Case = Annotated[str | None, typer.Option(help="A case of the op by name. Every case of its check by default.")]
Shapes = Annotated[
    str | None,
    typer.Option(help='Arguments of a function: "x[64 100], t[64]: int<10"; <function>_args when not given.'),
]
Second = Annotated[bool, typer.Option("--second", help="The second backward of an op too.")]
Order = Annotated[
    str, typer.Option(help="Of warps: together, or the first or the last one of a block as far as it can go alone.")
]
Early = Annotated[
    bool, typer.Option("--early", help="Asynchronous copies land when they are issued, not when they are waited for.")
]
Approximate = Annotated[
    bool, typer.Option("--approximate", help="ex2, rcp, tanh ... are as far off as their documentation allows.")
]
Gpu = Annotated[str | None, typer.Option(help="The GPU of the model: A100, H100, H200, ...")]
Budget = Annotated[int, typer.Option(min=1, help="The most instructions of warps that a launch may take.")]
Lines = Annotated[bool, typer.Option("--lines", help="Print the source with what each line executed.")]
Json = Annotated[Path | None, typer.Option(help="Write all numbers to this JSON file.")]
