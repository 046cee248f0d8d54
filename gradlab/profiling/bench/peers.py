"""Other libraries' layers beside the hand-written and the native ones, where they are installed and have a device."""

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from gradlab.profiling.native.native import Native


class Peer(NamedTuple):
    """One op of another library.

    Attributes:
        library: its name in tables.
        module: the module to import.
        label: the function's name in its documentation.
        fn: takes the Spec's arrays in order and its options by name; raises TypeError for an option it does not have.
        devices: where its kernels run.
        around: a context manager to enter for each run.
    """

    library: str
    module: str
    label: str
    fn: Callable[..., Any]
    devices: tuple[str, ...] = ("cpu", "cuda", "tpu")
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


def peers(side: str, op: str, device: str) -> dict[str, Native]:
    """The peers of an op that can run here, by library; their entries stand in `peers_torch.py` and `peers_jax.py`."""
    table: dict[str, list[Peer]] = importlib.import_module(f"gradlab.profiling.bench.peers_{side}").PEERS
    return {
        peer.library: Native(peer.label, peer.fn, peer.around)
        for peer in table.get(op, [])
        if device in peer.devices and importlib.util.find_spec(peer.module) is not None
    }
