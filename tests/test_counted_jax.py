"""What compiled steps send on 1, 2 and 4 host devices, held against the model's collectives; and how text is read."""

from collections import Counter

import pytest

pytest.importorskip("jax")

from gradlab.profiling.scale import counted_jax
from gradlab.profiling.scale.collective import Collective
from gradlab.profiling.scale.given import of_widths
from gradlab.profiling.scale.layer import Plan, vocabulary_plan
from gradlab.profiling.scale.strategies import Degrees, collectives
from gradlab.workloads import scaled
from tests import check_programs

WORLDS = (1, 2, 4)
WIDTHS, BATCH = (516, 1028, 260, 12), 24
NETWORK = of_widths("-".join(map(str, WIDTHS)))
# The loss' sum and how many rows it has.
LOSS = 2 * 4


@pytest.fixture(scope="module")
def counted():
    """By strategy and number of devices, the collectives of the compiled step."""
    words = ("-m", "tests.counted_collectives_jax", ",".join(map(str, WORLDS)))
    found = check_programs.found(*words, flags=f"--xla_force_host_platform_device_count={max(WORLDS)}")
    assert {name: one["others"] for name, one in found.items() if one["others"]} == {}
    return {
        name: Counter({Collective(kind, size, n): times for kind, size, n, times in one["counted"] if n > 1})
        for name, one in found.items()
    }


def plan(strategy, world):
    """How the program splits the layers."""
    if world == 1 or strategy in ("data", "sharded"):
        return Plan()
    if strategy == "vocabulary":
        return vocabulary_plan(NETWORK, world)
    pair = {"tensor": ("linear1", "linear2"), "tensor_inside": ("linear2", "linear3")}[strategy]
    return Plan(dict(zip(pair, ("columns", "sums"), strict=True)), world)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("strategy", ["tensor", "tensor_inside", "vocabulary"])
def test_the_model_knows_every_collective_and_its_bytes(counted, strategy, world):
    found = counted[f"{strategy} {world}"]
    assert found == Counter(collectives(NETWORK, plan(strategy, world), Degrees(tensor=world), BATCH, "float32"))
    assert bool(found) == (world > 1)


@pytest.mark.parametrize("world", WORLDS[1:])
def test_xla_adds_all_gradients_at_once(counted, world):
    """One all-reduce where DDP has buckets, of the same bytes, and one of the loss' two numbers."""
    buckets = collectives(NETWORK, Plan(), Degrees(data=world), BATCH // world, "float32")
    assert counted[f"data {world}"] == Counter(
        [Collective("all-reduce", sum(one.size for one in buckets), world), Collective("all-reduce", LOSS, world)]
    )


@pytest.mark.parametrize("world", WORLDS[1:])
def test_xla_gathers_once_and_sends_as_much(counted, world):
    """Parameters are gathered one by one, and kept for backward; on CPUs their gradients' scatter is an all-reduce.

    A ring sends 3 (n-1)/n P so, as for FSDP2's two all-gathers and one reduce-scatter.
    """
    found = counted[f"sharded {world}"]
    parameters = 4 * NETWORK.parameters()
    gathered = [one.size for one in found.elements() if one.kind == "all-gather"]
    assert (len(gathered), sum(gathered)) == (6, parameters)
    sums = Counter(one for one in found.elements() if one.kind == "all-reduce")
    assert sums == Counter([Collective("all-reduce", parameters, world), Collective("all-reduce", LOSS, world)])
    sent = sum(one.sent for one in found.elements()) - Collective("all-reduce", LOSS, world).sent
    fsdp = collectives(NETWORK, Plan(), Degrees(sharded=world), BATCH // world, "float32")
    assert sent == pytest.approx(sum(one.sent for one in fsdp))


@pytest.mark.parametrize("world", WORLDS[1:])
def test_a_step_of_train_sends_what_it_trains(counted, world):
    """digits-cnn: all gradients and the loss at once; in shares, all but the 10 numbers that 4 devices cannot share."""
    net = scaled.network("digits-cnn")
    numbers = net.parameters()
    assert counted[f"train {world}"] == Counter([Collective("all-reduce", 4 * (numbers + 1), world)])
    found = counted[f"train --fsdp {world}"]
    alone = 10 if world == 4 else 0
    sent = {kind: sum(c.size for c in found.elements() if c.kind == kind) for kind in ("all-gather", "reduce-scatter")}
    assert sent == {"all-gather": 4 * (numbers - alone), "reduce-scatter": 4 * (numbers - alone)}
    sums = [c for c in found.elements() if c.kind == "all-reduce"]
    assert sums == [Collective("all-reduce", 4 * (alone + 1), world)]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%a = f32[24,11]{1,0} all-reduce(%b), replica_groups={{0,1},{2,3}}", Collective("all-reduce", 1056, 2)),
        ("%a = (f32[1]{0}, bf16[2,3]{1,0}) all-reduce(%b, %c), replica_groups=[2,4]<=[8]",
         Collective("all-reduce", 16, 4)),
        ("%a = (f32[2], /*index=1*/f64[2]{0:T(8)}) all-reduce-start(%b), replica_groups={{0,1,2}}",
         Collective("all-reduce", 24, 3)),
        ("ROOT %a = (f32[2]{0}, f32[8]{0}) all-gather-start(%b), replica_groups=[1,4]<=[4]",
         Collective("all-gather", 32, 4)),
        ("%a = s8[5]{0} reduce-scatter(%b), replica_groups={{0,1}}", Collective("reduce-scatter", 10, 2)),
        ("%a = pred[5]{0} all-gather(%b), replica_groups=mesh['x'=2,'y'=4] {'y'}", Collective("all-gather", 5, 4)),
        ("%a = f8e4m3fn[5]{0} all-gather(%b), replica_groups=mesh['x'=2,'y'=4] {'x','y'}",
         Collective("all-gather", 5, 8)),
        ("%a = f32[] all-reduce(%b), replica_groups=mesh['x'=8] {'x':(2)2}", Collective("all-reduce", 4, 2)),
    ],
)  # fmt: skip
def test_how_a_line_is_read(line, found):
    assert counted_jax.collectives(f"ENTRY {{\n  {line}, to_apply=%sum\n}}") == ([found], [])


def test_what_is_no_collective_is_left_out():
    text = (
        "%a = f32[2] add(%all-reduce, %b)\n%c = f32[2] all-reduce-done(%a)\n%d = f32[2] all-to-all(%c), dimensions={0}"
    )
    assert counted_jax.collectives(text) == ([], ["all-to-all"])
