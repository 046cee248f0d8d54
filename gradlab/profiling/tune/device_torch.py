"""Where torch's launches run."""

import torch

from gradlab.autodiff.frameworks.side_torch import SIDE
from gradlab.kernels.runtime.launch_triton import places


def gpu() -> tuple[str, str] | None:
    """The name and the architecture of torch's default GPU; None without one, or with one of AMD's."""
    if SIDE.device() != "cuda":
        return None
    found = places(torch.device("cuda", torch.cuda.current_device()))
    return (found[0], found[1]) if len(found) > 2 else None
