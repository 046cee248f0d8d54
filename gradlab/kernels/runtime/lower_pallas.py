"""Programs lowered for a machine that need not be there."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

# From 0.11 on jax asks the device that it lowers Triton for what it is; the kernels themselves ask for nothing.
GPU = "NVIDIA H100 80GB HBM3"


def lowered(fn: Any, platform: str, *args: Any) -> jax.stages.Lowered:
    """The program of a function that `jax.jit` gave, for arguments of these shapes, for "cpu", "cuda" or "tpu".

    Without a GPU a program for CUDA is lowered for a named one, an H100; with one, for that.
    """
    with _device(platform):
        return fn.trace(*args).lower(lowering_platforms=(platform,))


def _device(platform: str) -> AbstractContextManager[Any]:
    if platform != "cuda" or jax.default_backend() == "gpu":
        return nullcontext()
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=AbstractDevice(GPU, None, "gpu")))
