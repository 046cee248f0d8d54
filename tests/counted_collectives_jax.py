"""Steps compiled for meshes of 1, 2 and 4 host devices, their collectives counted; a program of its own.

Devices are counted when jax starts. It prints by strategy and number of devices what `counted_jax` reads.
"""

import collections
import functools
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradlab.jax as lab
from gradlab.profiling.scale import counted_jax
from gradlab.workloads.catalogue import WORKLOADS
from gradlab.workloads.trainer_jax import Trainer
from gradlab.workloads.world import World

WIDTHS, BATCH = (516, 1028, 260, 12), 24
WORKLOAD = "digits-cnn"


def loss(params, x, t, **options):
    """cross_entropy of linear layers with a relu in each but the last."""
    for w, b in params[:-1]:
        x = lab.relu(lab.linear(x, w, b))
    return lab.cross_entropy(lab.linear(x, *params[-1]), t, **options)


def data(mesh):
    """Rows of the batch on each device, all parameters on all."""
    return [(P(), P())] * 3, P("d"), loss


def sharded(mesh):
    """A share of every parameter on each device, which is gathered before it is used."""

    def gathering(params, x, t):
        whole = jax.tree.map(lambda p: jax.lax.with_sharding_constraint(p, NamedSharding(mesh, P())), params)
        return loss(whole, x, t)

    return [(P("d", None), P("d"))] * 3, P("d"), gathering


def tensor(mesh):
    """The first layer by columns, the second by rows, the third whole."""
    return [(P(None, "d"), P("d")), (P("d", None), P()), (P(), P())], P(), loss


def tensor_inside(mesh):
    """The first layer whole, so that the input of what is split has a gradient."""
    return [(P(), P()), (P(None, "d"), P("d")), (P("d", None), P())], P(), loss


def vocabulary(mesh):
    """The last layer's columns and the loss' classes, inside shard_map; jax adds up the gradient of what all have."""
    specs = [(P(), P()), (P(), P()), (P(None, "d"), P("d"))]

    def spread(params, x, t):
        part = jax.shard_map(
            lambda *args: loss(*args, axis_name="d"), mesh=mesh, in_specs=(specs, P(), P()), out_specs=P()
        )
        return part(params, x, t)

    return specs, P(), spread


def text(strategy, mesh):
    """The compiled step: value and gradients, which lie where their parameters do."""
    specs, rows, fn = strategy(mesh)
    place = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda s: isinstance(s, P))
    params = [
        tuple(
            jax.ShapeDtypeStruct(shape, "float32", sharding=at) for shape, at in zip(((k, n), (n,)), two, strict=True)
        )
        for (k, n), two in zip(itertools.pairwise(WIDTHS), place, strict=True)
    ]
    by_row = NamedSharding(mesh, rows)
    x = jax.ShapeDtypeStruct((BATCH, WIDTHS[0]), "float32", sharding=by_row)
    t = jax.ShapeDtypeStruct((BATCH,), jnp.int32, sharding=by_row)
    out = (NamedSharding(mesh, P()), place)
    return jax.jit(jax.value_and_grad(fn), out_shardings=out).lower(params, x, t).compile().as_text()


def trained(kind, mesh):
    """The compiled step of `gradlab train --devices`, its optimizer too."""
    one = WORKLOADS[WORKLOAD]
    world = World(devices=mesh.size, kind=kind)
    trainer = Trainer(one, "gradlab", one.optimizer, "float32", one.network.initial(0), world)
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((one.batch, *one.network.shape), np.float32), rng.integers(10, size=one.batch)
    return trainer.program(x, t)


STRATEGIES = {f.__name__: f for f in (data, sharded, tensor, tensor_inside, vocabulary)}
TEXTS = {name: functools.partial(text, strategy) for name, strategy in STRATEGIES.items()}
TEXTS |= {"train": functools.partial(trained, ""), "train --fsdp": functools.partial(trained, "FSDP")}


def main(worlds):
    """All strategies on all numbers of devices, as JSON."""
    found = {}
    for world in worlds:
        mesh = jax.make_mesh((world,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:world])
        for name, compiled in TEXTS.items():
            counted, others = counted_jax.collectives(compiled(mesh))
            counts = collections.Counter(counted)
            found[f"{name} {world}"] = {
                "counted": [[*vars(c).values(), n] for c, n in counts.items()],
                "others": others,
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main([int(n) for n in sys.argv[1].split(",")])
