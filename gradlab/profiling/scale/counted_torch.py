"""What this process sends through torch.distributed, counted where every collective passes: DDP's in C++ too."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from gradlab.kernels.private.private_torch import TorchDispatchMode, process_group
from gradlab.profiling.scale.collective import Collective, Kind

# Operators of torch.distributed: what they do, and which argument is the whole array; c10d's are called by
# torch.distributed, DDP and FSDP, _c10d_functional's by DTensor.
OPERATORS: dict[str, tuple[Kind, int]] = {
    "c10d::allreduce_": ("all-reduce", 0),
    "c10d::allreduce_coalesced_": ("all-reduce", 0),
    "c10d::allgather_": ("all-gather", 0),
    "c10d::_allgather_base_": ("all-gather", 0),
    "c10d::allgather_into_tensor_coalesced_": ("all-gather", 0),
    "c10d::reduce_scatter_": ("reduce-scatter", 1),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", 1),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce-scatter", 1),
    "_c10d_functional::all_reduce": ("all-reduce", 0),
    "_c10d_functional::all_reduce_": ("all-reduce", 0),
    "_c10d_functional::all_reduce_coalesced": ("all-reduce", 0),
    "_c10d_functional::all_gather_into_tensor": ("all-gather", 0),
    "_c10d_functional::all_gather_into_tensor_coalesced": ("all-gather", 0),
    "_c10d_functional::reduce_scatter_tensor": ("reduce-scatter", 0),
    "_c10d_functional::reduce_scatter_tensor_coalesced": ("reduce-scatter", 0),
}
# Those that move nothing of a step: waiting, and what autograd wraps.
QUIET = ("wait_tensor", "_wrap_tensor_autograd", "monitored_barrier_", "barrier")


class Counted(TorchDispatchMode):
    """A context that notes every collective of this process.

    `collectives` are those that the model knows, in order; `others` the names of operators that it does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[Collective] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A DTensor's operator becomes those of its parts, which come here again.
        if any(issubclass(kind, torch.Tensor) and kind.__name__ == "DTensor" for kind in types):
            return NotImplemented
        name = func.name()
        if "c10d" in name.partition("::")[0]:
            self._note(name.partition(".")[0], args, kwargs or {})
        return func(*args, **kwargs or {})

    def _note(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if name not in OPERATORS:
            if name.partition("::")[2] not in QUIET:
                self.others.append(name)
            return
        kind, place = OPERATORS[name]
        devices = _group((*args, *kwargs.values())).size()
        size = _size(args[place])
        # The functional one is given a part of what it gathers.
        if name.startswith("_c10d_functional::all_gather"):
            size *= devices
        self.collectives.append(Collective(kind, size, devices))


def _group(args: Sequence[Any]) -> Any:
    """The group of an operator: its first script object, or the last argument, a name."""
    boxed = next((a for a in args if isinstance(a, torch.ScriptObject)), None)
    return dist.ProcessGroup.unbox(boxed) if boxed is not None else process_group(args[-1])


def _size(value: Any) -> int:
    """Bytes of a tensor, or of those in nested lists."""
    return value.nbytes if isinstance(value, torch.Tensor) else sum(_size(part) for part in value)
