"""A network spread over the processes of torch.distributed: DDP or fully_shard around it, and sums over all of them."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gradlab.autodiff.arguments.shards_torch import full, is_sharded
from gradlab.workloads.world import World

__all__ = ["Flags", "full", "gathered", "like", "needed", "wrapped"]

# What a run is told to end with: Ctrl-C and SIGTERM, by their numbers.
_SIGNALS = (2, 15)


def needed(world: World) -> bool:
    """Whether a module has to be wrapped: DDP around a single process has nothing to add up."""
    return world.size > 1 or world.kind == "FSDP"


def wrapped(net: torch.nn.Module, world: World) -> Any:
    """The module under the engine that the world names; its parameters are then those of that engine.

    DDP repeats them on each process and averages gradients while backward runs; fully_shard (FSDP2) gives each process
    its part of every layer and gathers a layer's whenever it is used.
    """
    if world.kind == "FSDP":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(_device(), (world.size,))
        for layer in net.children():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        return fully_shard(net, mesh=mesh)
    from torch.nn.parallel import DistributedDataParallel

    # Gradients that lie in the buckets are added up where they are, and stay at one address for the optimizer.
    return DistributedDataParallel(net, gradient_as_bucket_view=True)


class Flags:
    """The mean of a loss over all processes, and what each was told to end with, in one sum a step."""

    def __init__(self) -> None:
        self._own, self._all = 0, 0

    def mean(self, value: torch.Tensor) -> float:
        """The mean of the processes' values, in float64."""
        flags = [float(self._own == number) for number in _SIGNALS]
        row = torch.cat([value.detach().double().reshape(1), torch.tensor(flags, dtype=torch.float64).to(value.device)])
        dist.all_reduce(row)
        total, *told = row.tolist()
        self._all = next((number for number, n in zip(_SIGNALS, told, strict=True) if n), 0)
        return total / dist.get_world_size()

    def agreed(self, signal: int) -> int:
        """What all processes ended the last step with, 0 for none; `signal` goes round with the next."""
        self._own = signal
        return self._all


def gathered(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes in the order of their ranks; each has as many."""
    own = torch.from_numpy(np.ascontiguousarray(rows)).to(_device())
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    return torch.cat(every).cpu().numpy()


def like(p: torch.Tensor, value: Any) -> torch.Tensor:
    """A value of the parameter's state as a tensor, spread as the parameter is where it has its shape."""
    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value.copy())
    if is_sharded(p) and not is_sharded(tensor) and tensor.shape == p.shape:
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(p, DTensor)
        return distribute_tensor(tensor.to(p.device), p.device_mesh, p.placements)
    return tensor


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
