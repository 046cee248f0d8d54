"""The options of `gradlab scale` on the command line."""

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[
    str,
    typer.Argument(
        help="A workload that `gradlab train` lists, an op, or the widths of linear layers as "
        '"4096-(16384-4096)x32-50304".'
    ),
]
Devices = Annotated[str, typer.Option(help='"1..4096" for powers of two, "1,3,8..64" for others too.')]
Gpu = Annotated[str, typer.Option(help="A100, H100, ..., or this: what this machine reaches now.")]
Links = Annotated[
    str | None, typer.Option(help='In a node and between nodes, as "nvswitch,ndr". Those that the GPU is sold with.')
]
Node = Annotated[int | None, typer.Option(min=1, help="Devices a node. As the GPU is sold.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Rows of a step in all. The workload's by default.")]
BatchPerDevice = Annotated[
    int | None, typer.Option(min=1, help="Rows of a step on each device, so that the batch grows with them.")
]
Dtype = Annotated[str, typer.Option(help="float64, float32, float16 or bfloat16.")]
Sizes = Annotated[str, typer.Option(help='Sizes of an op: "M=8192,K=4096". Its largest case by default.')]
Loss = Annotated[str | None, typer.Option(help="Of widths: cross_entropy (default), linear_cross_entropy or mse_loss.")]
Strategy = Annotated[
    list[str] | None,
    typer.Option(help="data, sharded, tensor, vocabulary or mix, the last one in detail. All by default."),
]
Plot = Annotated[Path | None, typer.Option(help="Plot step time and efficiency over devices: .png.")]
Json = Annotated[Path | None, typer.Option(help="Write all numbers to this JSON file.")]
