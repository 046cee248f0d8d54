"""How one operation is split over the devices of a mesh: axis letters of its arrays along axes of the mesh.

A letter is split along the mesh axes of the first operand that is sharded there; a mesh axis splits one letter, and a
letter only where its size is a multiple of the devices: every other axis is whole on every device. So the layout of
the first operands wins, which are activations, and what conflicts with it is resharded. An operand that follows has no
say in letters that others have: a gradient is brought to where its parameter lies. Letters of terms of one sum, which
no array has both of, may be split along the same mesh axis: each device sums what it has.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gradlab.kernels.private.private_jax import meshes_of_arguments
from gradlab.kernels.runtime.mesh_pallas import explicit_axes
from gradlab.kernels.runtime.sharding import sharding
from gradlab.kernels.runtime.traced_pallas import ByValue

# letter -> the mesh axes that it is split along; letters that are whole are left out.
Split = Mapping[str, tuple[Any, ...]]


class Rule(NamedTuple):
    """Axis letters of an operation's operands and results, and what may be split.

    Attributes:
        letters: those that may be split.
        sums: those among them whose split makes each device's result a term of a sum.
        added: numbers of the operands that belong to one term of such a sum.
        own: letters whose split has a function of its own; one of them is split at a time.
        follows: numbers of the operands that decide no letter that another one has.
    """

    inputs: tuple[tuple[str, ...], ...]
    results: tuple[tuple[str, ...], ...]
    letters: tuple[str, ...] = ()
    sums: frozenset[str] = frozenset()
    added: frozenset[int] = frozenset()
    own: frozenset[str] = frozenset()
    follows: frozenset[int] = frozenset()

    @classmethod
    def of(cls, text: str, given: Sequence[bool], own: Iterable[str] = ()) -> "Rule":
        """The rule that a text means; `given`: which of its inputs are there."""
        found = sharding(text)
        there = [i for i, is_there in enumerate(given) if is_there]
        return cls(
            tuple(found.inputs[i].axes for i in there),
            tuple(array.axes for array in found.results),
            tuple(split.axis for split in found.splits),
            frozenset(split.axis for split in found.splits if "term" in split.results),
            frozenset(k for k, i in enumerate(there) if any(split.inputs[i] == "term" for split in found.splits)),
            frozenset(own),
            frozenset(k for k, i in enumerate(there) if i in found.follows),
        )

    def mapped(self, axes: Sequence[int | None]) -> "Rule":
        """The rule under vmap: the mapped axis is one more letter, in front of every result."""
        letter = f"Z{len(self.letters)}"

        def inserted(of: tuple[str, ...], axis: int | None) -> tuple[str, ...]:
            return of if axis is None else (*of[:axis], letter, *of[axis:])

        inputs = tuple(inserted(of, axis) for of, axis in zip(self.inputs, axes, strict=True))
        return self._replace(
            inputs=inputs, results=tuple((letter, *of) for of in self.results), letters=(letter, *self.letters)
        )

    def split(
        self, sizes: Mapping[Any, int], shapes: Sequence[Sequence[int]], specs: Sequence[Any], wanted: Sequence[Any]
    ) -> Split:
        """How operands of these shapes and partition specs are split over mesh axes of these sizes.

        `wanted`: partition specs of the results, which decide where no operand is sharded.
        """
        lengths = {a: n for of, shape in zip(self.inputs, shapes, strict=True) for a, n in zip(of, shape, strict=True)}
        found: dict[str, tuple[Any, ...]] = {}
        used: dict[Any, list[str]] = {}
        ins = [(self.deciding(i), spec) for i, spec in enumerate(specs)]
        for of, spec in [*ins, *zip(self.results, wanted, strict=False)]:
            for letter, place in zip(of, spec, strict=False):
                if letter in found or letter not in self.letters or letter not in lengths:
                    continue
                if letter in self.own and self.own & found.keys():
                    continue
                axes = tuple(a for a in _names(place) if a in sizes and self._apart(letter, used.get(a, ())))
                if axes and lengths[letter] % math.prod(sizes[a] for a in axes) == 0:
                    found[letter] = axes
                    for a in axes:
                        used.setdefault(a, []).append(letter)
        return found

    def deciding(self, operand: int) -> tuple[str, ...]:
        """The letters of an operand, with "" in place of those that others decide."""
        of = self.inputs[operand]
        if operand not in self.follows:
            return of
        decided = {letter for i, other in enumerate(self.inputs) if i not in self.follows for letter in other}
        return tuple("" if letter in decided else letter for letter in of)

    def _apart(self, letter: str, others: Sequence[str]) -> bool:
        """Whether a letter may be split along the mesh axis that these are split along."""
        if not others:
            return True
        of_sums = all(i in self.added for i, of in enumerate(self.inputs) for other in (letter, *others) if other in of)
        arrays = (*self.inputs, *self.results)
        return of_sums and not any(letter in of and other in of for of in arrays for other in others)

    def typed_split(self, mesh: Any, types: Sequence[Any]) -> Split:
        """How operands of these types, on a mesh of Explicit axes, are split."""
        return self.split(explicit_axes(mesh), [t.shape for t in types], [t.sharding.spec for t in types], ())


def auto_mesh(ctx: Any) -> Any:
    """The mesh of Auto axes and several devices that a program is lowered for; None where that is unknown or Manual.

    An export cannot hold what the partitioner calls back.
    """
    place = ctx.module_context.axis_context
    count, manual = getattr(place, "num_devices", 1), getattr(place, "manual_axes", ())
    exported = getattr(ctx.module_context.lowering_parameters, "for_export", False)
    if count == 1 or count > jax.device_count() or manual or exported:
        return None
    named = [t.sharding.mesh for t in ctx.avals_in if not t.sharding.mesh.empty]
    if not named:
        sizes = meshes_of_arguments(ctx)
        named = [AbstractMesh(tuple(s.values()), tuple(s)) for s in sizes] if len(sizes) == 1 else []
    return next((mesh for mesh in named if mesh.size == count and mesh.are_all_axes_auto), None)


def on_mesh(ctx: Any, mesh: Any) -> Any:
    """The context with the mesh and devices in it: jax leaves them out where no operation asks for them.

    `custom_partitioning` makes a mesh of the devices, of which only the shape and the order count.
    """
    place = ctx.module_context.axis_context
    devices = place.device_assignment or tuple(jax.devices()[: place.num_devices])
    there = dataclasses.replace(place, device_assignment=devices, abstract_mesh=mesh)
    return ctx.replace(module_context=ctx.module_context.replace(axis_context=there))


def specs_of(arrays: Sequence[Sequence[str]], split: Split) -> list[P]:
    """The partition specs of arrays of these axis letters."""
    return [P(*(split.get(letter) for letter in of)) for of in arrays]


class Splitting(NamedTuple):
    """A rule with what a device runs: the function of the arrays' parts, and where one of `own` is split another one.

    The latter takes the mesh axes that its letter is split along before the parts, and does what a sum over that letter
    needs itself. All return lists.
    """

    rule: Rule
    fn: ByValue
    own: tuple[tuple[str, ByValue], ...] = ()

    @classmethod
    def none(cls, operands: Sequence[Any], results: Sequence[Any]) -> "Splitting":
        """That of an operation that every device runs as a whole."""
        ins, outs = (tuple(("1",) * len(t.shape) for t in side) for side in (operands, results))
        return cls(Rule(ins, outs), ByValue(_nothing))

    def mapped(self, axes: tuple[int | None, ...]) -> "Splitting":
        """The splitting under vmap."""
        own = ((letter, ByValue(functools.partial(_mapped, fn.fn, axes))) for letter, fn in self.own)
        return Splitting(self.rule.mapped(axes), ByValue(jax.vmap(self.fn.fn, axes)), tuple(own))

    def on_one(self, split: Split, run: Callable[..., Any]) -> Callable[..., list[jax.Array]]:
        """What one device runs of its parts: `run`, which binds `fn`, or the letter's own function; then the sums."""
        rule = self.rule
        for letter, fn in self.own:
            if letter in split:
                run = functools.partial(fn.fn, split[letter])
        summed = {letter: split[letter] for letter in rule.sums & split.keys() - rule.own}

        def missing(of: Sequence[str]) -> set[Any]:
            """The mesh axes along which terms of sums are, for an array of these letters."""
            return {a for letter in summed.keys() - set(of) for a in summed[letter]}

        def call(*parts: jax.Array) -> list[jax.Array]:
            given = list(parts)
            for i in rule.added:
                own = {a for letter in rule.inputs[i] for a in split.get(letter, ())}
                axes = missing(rule.inputs[i]) - own
                if axes:
                    given[i] = once(sorted(axes, key=str), given[i])
            results = []
            for y, of in zip(jax.tree.leaves(run(*given)), rule.results, strict=True):
                axes = missing(of)
                results.append(jax.lax.psum(y, tuple(sorted(axes, key=str))) if axes else y)
            return results

        return call

    def over_explicit(self, mesh: Any, types: Sequence[Any], run: Callable[..., Any]) -> Callable[..., Any]:
        """The operation on a mesh of Explicit axes, which are Manual within."""
        split = self.rule.typed_split(mesh, types)
        ins, outs = (specs_of(side, split) for side in (self.rule.inputs, self.rule.results))

        def call(*arrays: jax.Array) -> Any:
            placed = [jax.sharding.reshard(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, ins, strict=True)]
            return jax.shard_map(
                self.on_one(split, run),
                mesh=mesh,
                in_specs=tuple(ins),
                out_specs=outs,
                axis_names=set(explicit_axes(mesh)),
                check_vma=False,
            )(*placed)

        return call

    def over_auto(self, everything: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
        """The operation on a mesh of Auto axes, where the shardings of arrays are known at compilation only.

        Shardy carries shardings through the operation by its letters, and the partitioner asks for one device's
        program. `everything` is the operation on one device.
        """
        rule = self.rule

        def places(mesh: Any, arrays: Sequence[Any], results: Sequence[Any]) -> tuple[Split, Any, Any]:
            specs, wanted = ([x.sharding.spec for x in side] for side in (arrays, results))
            split = rule.split(dict(mesh.shape), [x.shape for x in arrays], specs, wanted)
            ins, outs = (
                [NamedSharding(mesh, spec) for spec in specs_of(side, split)] for side in (rule.inputs, rule.results)
            )
            return split, tuple(ins), outs

        def partition(mesh: Any, arrays: Sequence[Any], results: Sequence[Any]) -> Any:
            split, ins, outs = places(mesh, arrays, results)
            return mesh, self.on_one(split, run), outs, ins

        call = custom_partitioning(lambda *arrays: list(everything(*arrays)))
        call.def_partition(
            partition,
            infer_sharding_from_operands=lambda mesh, arrays, results: places(mesh, arrays, ())[2],
            sharding_rule=_shardy(rule),
        )
        return call


def once(names: Sequence[Any], x: jax.Array) -> jax.Array:
    """x on the first device along these mesh axes and zeros on the others, as what belongs to one term of a sum."""
    first = functools.reduce(jnp.logical_and, [jax.lax.axis_index(name) == 0 for name in names])
    return jnp.where(first, x, jnp.zeros_like(x))


def _nothing(*parts: jax.Array) -> list[jax.Array]:
    raise NotImplementedError


def _mapped(fn: Callable[..., Any], axes: Any, names: Any, *parts: jax.Array) -> Any:
    return jax.vmap(functools.partial(fn, names), axes)(*parts)


def _shardy(rule: Rule) -> SdyShardingRule:
    """The rule in Shardy's words, where what may not be split is replicated."""
    closed: list[str] = []
    following: list[str] = []
    seen: set[str] = set()

    def factors(of: Sequence[str]) -> ArrayMapping:
        names = list(of)
        for i, letter in enumerate(of):
            if not letter:
                # Nothing is carried between this array and the others: the partitioner reshards it.
                names[i] = f"following{len(following)}"
                following.append(names[i])
            elif letter not in rule.letters:
                # One factor for each place: sizes that no rule names may differ from array to array.
                names[i] = f"whole{len(closed)}"
                closed.append(names[i])
        seen.update(names)
        return ArrayMapping(*names)

    deciding = [rule.deciding(i) for i in range(len(rule.inputs))]
    inputs, results = (tuple(map(factors, side)) for side in (deciding, rule.results))
    kept = {letter for of in rule.results for letter in of}
    summed = tuple(letter for letter in rule.letters if letter in seen and letter not in kept)
    return SdyShardingRule(inputs, results, reduction_factors=summed, need_replication_factors=tuple(closed))


def _names(place: Any) -> tuple[Any, ...]:
    if place is None or place is P.UNCONSTRAINED:
        return ()
    return tuple(place) if isinstance(place, (tuple, list)) else (place,)
