"""What 1, 2 and 4 processes send in a step, held against the model's collectives and against loopback's own count."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

from gradlab.profiling.scale.collective import Collective
from gradlab.profiling.scale.given import of_widths
from gradlab.profiling.scale.layer import Plan, vocabulary_plan
from gradlab.profiling.scale.strategies import Degrees, collectives
from gradlab.workloads import scaled
from tests.counted_collectives import ALONE, BATCH, CLASSES, STEPPED, WIDTHS, WORKLOAD

WORLDS = (1, 2, 4)
NETWORK = of_widths("-".join(map(str, WIDTHS)))
# Headers of TCP and IP and acknowledgements, and gloo's own headers of 48 bytes a message: a share of what is sent, and
# bytes for each message of a device; a busy receiver takes a message in smaller pieces.
SHARE, MESSAGE = 0.005, 2000


def own_network():
    """The words that give a program a network of its own, where this user may have one."""
    words = ["unshare", "--map-root-user", "--net"]
    if shutil.which(words[0]) and subprocess.run([*words, "true"], capture_output=True).returncode == 0:
        return words
    return []


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """By world size, what rank 0 counted and what loopback carried."""
    folder, alone = tmp_path_factory.mktemp("counted"), own_network()
    done = subprocess.run(
        [*alone, sys.executable, "-m", "tests.counted_collectives", ",".join(map(str, WORLDS)), str(folder)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", ALONE: "1" if alone else ""},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {world: json.loads((folder / f"{world}.json").read_text()) for world in WORLDS}


def predicted(strategy, world):
    """The model's collectives of a step, those of a device alone left out."""
    if strategy.startswith("train"):
        net = scaled.network(WORKLOAD)
        degrees = Degrees(**{"data" if strategy == "train DDP" else "sharded": world})
        # The loss of all ranks, and whether one of them was told to end by Ctrl-C or SIGTERM.
        told = [Collective("all-reduce", 3 * 8, world)] * (world > 1)
        return Counter([*told, *collectives(net, Plan(), degrees, net.batch // world, "float32")])
    if strategy == "moved":
        size = 4 * BATCH * WIDTHS[-1]
        kinds = ("all-gather", "reduce-scatter", "all-reduce")
        return Counter(Collective(kind, size, world) for kind in kinds if world > 1)
    if strategy == "vocabulary":
        net = of_widths("-".join(map(str, (*WIDTHS[:-1], CLASSES))))
        return Counter(collectives(net, vocabulary_plan(net, world), Degrees(tensor=world), BATCH, "float32"))
    pair = {"tensor": ("linear1", "linear2"), "tensor_inside": ("linear2", "linear3")}.get(strategy)
    plan = Plan(dict(zip(pair, ("columns", "sums"), strict=True)), world) if pair and world > 1 else Plan()
    degrees = {"data": Degrees(data=world), "sharded": Degrees(sharded=world)}.get(strategy, Degrees(tensor=world))
    return Counter(collectives(NETWORK, plan, degrees, BATCH // degrees.rows, "float32"))


def sent(found):
    """What was counted, without what goes to nobody."""
    return Counter({Collective(kind, size, n): times for kind, size, n, times in found if n > 1})


STRATEGIES = tuple(STEPPED)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_model_knows_every_collective_and_its_bytes(counted, strategy, world):
    found = sent(counted[world]["counted"][strategy])
    assert found == predicted(strategy, world)
    assert bool(found) == (world > 1)


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_loopback_carries_what_the_algorithms_send(counted, strategy, world):
    """gloo adds by rings; its reduce-scatter is an all-reduce of which a rank keeps its part: twice what is needed."""
    carried = counted[world]["carried"]
    if carried is None:
        pytest.skip("this user may not have a network of their own: loopback carries others' bytes too")
    found = predicted(strategy, world)
    twice = {"reduce-scatter": 2}
    payload = world * sum(twice.get(one.kind, 1) * one.sent * n for one, n in found.items())
    # A ring's pieces are cut in two, and each is announced before it is sent.
    messages = world * sum(8 * (world - 1) * n for n in found.values())
    assert payload < carried[strategy] < payload * (1 + SHARE) + messages * MESSAGE


def test_the_counts_are_not_of_one_kind(counted):
    """DDP filled two buckets, and FSDP2 rounded shares up."""
    assert len(counted[4]["counted"]["data"]) == 2
    whole = 4 * (WIDTHS[2] * WIDTHS[3] + WIDTHS[3])
    assert min(size for _, size, *_ in counted[4]["counted"]["sharded"]) > whole
    assert min(size for _, size, *_ in counted[2]["counted"]["sharded"]) > whole
