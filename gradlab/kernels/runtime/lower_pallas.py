"""Lowers programs for a machine that need not be present."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

# From 0.11 on jax reads properties of the GPU while it lowers Triton kernels; the lab's kernels do not use them.
GPU = "NVIDIA H100 80GB HBM3"


def lowered(fn: Any, platform: str, *args: Any) -> jax.stages.Lowered:
    """The lowered program of a `jax.jit` function, for arguments of these shapes, for "cpu", "cuda" or "tpu".

    For CUDA it is lowered for the GPU of this machine, or for an H100 if there is none.
    """
    with _device(platform):
        return fn.trace(*args).lower(lowering_platforms=(platform,))


def _device(platform: str) -> AbstractContextManager[Any]:
    if platform != "cuda" or jax.default_backend() == "gpu":
        return nullcontext()
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=AbstractDevice(GPU, None, "gpu")))
