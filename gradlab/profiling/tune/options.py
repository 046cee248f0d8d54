"""The options of `gradlab tune` on the command line."""

from pathlib import Path
from typing import Annotated

import typer

Op = Annotated[str, typer.Argument(help="An op whose kernels take tiles: conv2d, linear, linear_cross_entropy.")]
Dtype = Annotated[str, typer.Option(help="float64, float32, float16 or bfloat16.")]
Case = Annotated[str | None, typer.Option(help="A case of the op by name. All that are timed on a GPU by default.")]
Limit = Annotated[float, typer.Option(help="Seconds for all of it; what is begun is finished.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Measure nothing: what is tried, what rules it out, the model's order.")
]
Arch = Annotated[str | None, typer.Option(help="Of a dry run: sm_80, sm_86, sm_89, sm_90, sm_100. sm_90 by default.")]
Gpu = Annotated[str | None, typer.Option(help="The model's GPU in a dry run: A100, H100, ...")]
To = Annotated[
    Path | None,
    typer.Option(help="The file of tiles that gets the rows; the user's own by default.", show_default=False),
]
Packaged = Annotated[bool, typer.Option("--packaged", help="Put the rows into the package's own file.")]
