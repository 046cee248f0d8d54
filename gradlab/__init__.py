"""gradlab: gradients by hand, twice.

Every layer is written once as a Triton kernel under a `torch.autograd.Function` (`gradlab.torch`) and once as a Pallas
kernel under a `jax.custom_vjp` (`gradlab.jax`), proven against finite differences and against each other
(`gradlab.check`), and timed beside the native layers (`gradlab bench`). Importing `gradlab` imports neither framework.
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlab.autodiff.check import check as check
    from gradlab.autodiff.checker.report import GradientError as GradientError

__all__ = ["GradientError", "check"]


def __getattr__(name: str) -> Any:
    """`gradlab.check` and `gradlab.GradientError`, imported when asked for."""
    if name == "check":
        from gradlab.autodiff.check import check

        return check
    if name == "GradientError":
        from gradlab.autodiff.checker.report import GradientError

        return GradientError
    raise AttributeError(f"module 'gradlab' has no attribute {name!r}")
