"""The options of `gradlab train` on the command line that say where a run is kept, and who shares it."""

from pathlib import Path
from typing import Annotated

import typer

Save = Annotated[
    Path | None,
    typer.Option(
        help="Save the run to this file: weights, optimizer, losses; under torchrun or with --devices a folder."
    ),
]
Load = Annotated[Path | None, typer.Option(help="Start from the weights in this file or folder, of torch or jax.")]
Resume = Annotated[Path | None, typer.Option(help="Continue the run saved in this file or folder.")]
Fsdp = Annotated[
    bool, typer.Option("--fsdp", help="Under torchrun or with --devices: shard weights and optimizer too.")
]
Timeout = Annotated[float, typer.Option(min=1, help="Of several processes: seconds that one waits for the others.")]
Devices = Annotated[
    int | None, typer.Option(min=1, help="On jax: train on this many devices, of all processes together.")
]
CoordinatorAddress = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="On jax: join several processes, of which number 0 listens there."),
]
NumProcesses = Annotated[
    int | None, typer.Option(min=1, help="How many processes join. A scheduler's own number by default.")
]
ProcessId = Annotated[
    int | None, typer.Option(min=0, help="The number of this process. A scheduler's own number by default.")
]
