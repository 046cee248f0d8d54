"""gradlab: neural-network layers with hand-written gradients.

Every layer is written once as a Triton kernel under a `torch.autograd.Function` (`gradlab.torch`) and once as a Pallas
kernel under a `jax.custom_vjp` (`gradlab.jax`), checked against finite differences and against each other
(`gradlab.check`), and timed beside the native layers (`gradlab bench`). Importing `gradlab` imports neither framework.
"""

__version__ = "0.3.0"

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlab.autodiff.checker.check import check as check
    from gradlab.autodiff.checker.report import GradientError as GradientError
    from gradlab.profiling.ranges.ranges import nvtx as nvtx
    from gradlab.profiling.sanitize.sanitize import SanitizeError as SanitizeError
    from gradlab.profiling.sanitize.sanitize import sanitize as sanitize

__all__ = ["GradientError", "SanitizeError", "check", "nvtx", "sanitize"]


def __getattr__(name: str) -> Any:
    """`gradlab.check`, `gradlab.sanitize`, their errors and `gradlab.nvtx`, imported on first use."""
    if name == "check":
        from gradlab.autodiff.checker.check import check

        return check
    if name == "GradientError":
        from gradlab.autodiff.checker.report import GradientError

        return GradientError
    if name == "nvtx":
        from gradlab.profiling.ranges.ranges import nvtx

        return nvtx
    if name in ("SanitizeError", "sanitize"):
        from gradlab.profiling.sanitize import sanitize as module

        return getattr(module, name)
    raise AttributeError(f"module 'gradlab' has no attribute {name!r}")


if os.environ.get("GRADLAB_NVTX"):
    from gradlab.profiling.ranges.ranges import from_environment

    from_environment()
