"""A network spread over the devices of a mesh: where its arrays lie, and the sums that its steps need."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gradlab.workloads.world import World

AXIS = "data"
# What a run is told to end with: Ctrl-C and SIGTERM, by their numbers.
_SIGNALS = (2, 15)


class Spread(NamedTuple):
    """A mesh of one axis, over which each batch is sharded.

    Attributes:
        mesh: its devices, those of one process side by side.
        fsdp: whether parameters and optimizer are sharded too, instead of repeated on each device.
    """

    mesh: Mesh
    fsdp: bool = False

    @property
    def processes(self) -> int:
        return len({device.process_index for device in self.mesh.devices.flat})

    def spec(self, shape: tuple[int, ...]) -> P:
        """Where an array of the state lies: on all devices or, with fsdp, along the longest axis that they can share.

        It follows from the shape alone, so that an optimizer's moments lie as their parameter does.
        """
        axes = [axis for axis, size in enumerate(shape) if size and size % self.mesh.size == 0]
        if not self.fsdp or not axes:
            return P()
        return P(*[None] * max(axes, key=lambda axis: shape[axis]), AXIS)

    def specs(self, tree: Any) -> Any:
        """`spec` of every leaf."""
        return jax.tree.map(lambda leaf: self.spec(leaf.shape), tree)

    def shardings(self, tree: Any) -> Any:
        """`spec` of every leaf, on this mesh."""
        return jax.tree.map(lambda leaf: NamedSharding(self.mesh, self.spec(leaf.shape)), tree)

    def rows(self, own: np.ndarray) -> jax.Array:
        """A batch of which this process has the rows `own`, sharded over the mesh."""
        shape = (self.processes * len(own), *own.shape[1:])
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, P(AXIS)), own, shape)

    def put(self, value: Any, like: Any) -> jax.Array:
        """An array of the state where it belongs; `value` lies there already, or every process has all of it."""
        sharding = NamedSharding(self.mesh, self.spec(like.shape))
        if isinstance(value, jax.Array) and value.sharding == sharding:
            return value
        host = np.asarray(value, like.dtype)
        # A copy: a step donates its state, and must not write into an array of the caller's.
        return jax.make_array_from_callback(like.shape, sharding, lambda index: host[index].copy())

    def told(self, signal: int) -> jax.Array | None:
        """For each device and signal, whether this process was told to end; None where no other has to know."""
        if self.processes == 1:
            return None
        each = self.mesh.size // self.processes
        return self.rows(np.array([[float(signal == number) for number in _SIGNALS]] * each, np.float32))


def over(world: World) -> Spread | None:
    """The spread over a world's devices, as many of each process; None for a single one."""
    if world.devices <= 1:
        return None
    each = world.devices // world.size
    there = [[d for d in jax.devices() if d.process_index == rank][:each] for rank in range(world.size)]
    return Spread(Mesh(np.array(there).ravel(), (AXIS,)), world.kind == "FSDP")


def signal_of(told: Any) -> int:
    """The signal that one of the processes was told to end with; 0 for none."""
    return next((number for number, count in zip(_SIGNALS, told, strict=True) if count), 0)


def whole(params: Any, specs: Any) -> Any:
    """Within a step, parameters of which this device may have a part: whole, and this device's own.

    So the pullback adds up the devices' gradients, in the parameter's precision: an all-reduce of what all devices
    have, a reduce-scatter of what is sharded.
    """

    def one(p: jax.Array, spec: P) -> jax.Array:
        if AXIS in spec:
            return jax.lax.all_gather(p, AXIS, axis=spec.index(AXIS), tiled=True)
        return jax.lax.pcast(p, AXIS, to="varying")

    return jax.tree.map(one, params, specs)


def everywhere(flag: jax.Array) -> jax.Array:
    """Within a step, whether a flag is set on all devices."""
    return jax.lax.psum(jnp.where(flag, 0, 1), AXIS) == 0


def own_rows(y: jax.Array) -> np.ndarray:
    """The rows that this process's devices have, in order."""
    parts = sorted(y.addressable_shards, key=lambda part: part.index[0].start or 0)
    return np.concatenate([np.asarray(part.data) for part in parts])


def taken(x: jax.Array) -> np.ndarray:
    """A whole array, which all processes ask for together."""
    return np.array(x) if x.is_fully_addressable or x.is_fully_replicated else gathered(x)


def gathered(x: Any) -> np.ndarray:
    """A sharded array, or the rows of all processes in their order; each has as many."""
    from jax.experimental.multihost_utils import process_allgather

    return np.array(process_allgather(x, tiled=True))
