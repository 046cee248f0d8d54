"""`gradlab scale`: formulas against small cases worked out by hand, the best mix against a search, bad input."""

import itertools
import json
import math
import sys
from dataclasses import replace

import pytest

from gradlab import cli
from gradlab.kernels.spec import specs
from gradlab.profiling.machine_code.gpus import GPUS
from gradlab.profiling.scale import given, layer, links, named, strategies, table
from gradlab.profiling.scale.args import checked_args, parsed_devices
from gradlab.profiling.scale.collective import Collective, Place, seconds
from gradlab.profiling.scale.command import predictions
from gradlab.profiling.scale.layer import AXES, Plan, tensor_plan, vocabulary_plan
from gradlab.profiling.scale.model import Prediction, memory, predict
from gradlab.profiling.scale.search import best, mixes
from gradlab.profiling.scale.strategies import Degrees, buckets, collectives
from gradlab.workloads import scaled
from gradlab.workloads.catalogue import WORKLOADS

NVLINK, NDR, ETHERNET = links.LINKS["nvlink4"], links.LINKS["ndr"], links.LINKS["100gbe"]
H100 = named.machine("H100", "nvlink4,ndr")


def run(monkeypatch, capsys, *words):
    """(exit code, stdout, stderr) of `gradlab scale` with these words."""
    monkeypatch.setattr(sys, "argv", ["gradlab", "scale", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return stop.value.code, out, err


# --- collectives


def test_what_a_device_sends_is_a_rings():
    assert Collective("all-reduce", 800, 4).sent == 2 * 3 / 4 * 800
    assert Collective("all-gather", 800, 4).sent == Collective("reduce-scatter", 800, 4).sent == 600
    assert Collective("all-reduce", 800, 1).sent == 0


def place(inside, nodes=1, within=NVLINK, between=NDR, neighbours=1):
    return Place(inside, nodes, within, between, neighbours)


def test_large_arrays_take_their_bytes_and_small_ones_their_steps():
    S = 1e12
    assert seconds("all-reduce", S, place(8)).link == pytest.approx(2 * 7 / 8 * S / 450e9)
    assert seconds("all-gather", S, place(8)).link == pytest.approx(7 / 8 * S / 450e9)
    # Two devices have one neighbour; of many, a tree has fewer steps than a ring.
    assert seconds("all-reduce", 0, place(2)).total == pytest.approx(6.6e-6 + 2 * 0.6e-6)
    assert seconds("all-reduce", 0, place(64)).total == pytest.approx(6.6e-6 + 2 * 6 * 0.6e-6)
    assert seconds("all-gather", 0, place(64)).total == pytest.approx(6.6e-6 + 63 * 0.6e-6)
    assert seconds("all-reduce", S, place(1)).total == 0


def test_a_switch_that_adds_takes_each_array_once():
    S = 1e12
    assert seconds("all-reduce", S, place(8, within=links.LINKS["nvswitch"])).link == pytest.approx(S / 450e9)
    assert seconds("all-gather", S, place(8, within=links.LINKS["nvswitch"])).link == pytest.approx(7 / 8 * S / 450e9)


def test_over_nodes_the_slower_links_count_and_all_steps():
    S = 1e12
    two = seconds("all-reduce", S, place(8, 4, within=links.LINKS["nvlink5"]))
    assert two.link == pytest.approx(2 * 3 / 4 * S / 8 / 50e9)
    # A slower link within makes those within the slower ones.
    assert seconds("all-reduce", S, place(8, 4, within=links.LINKS["pcie4"])).link == pytest.approx(
        2 * 7 / 8 * S / 31.5e9
    )
    within, between = seconds("reduce-scatter", 0, place(8)), seconds("all-reduce", 0, place(1, 4))
    assert seconds("all-reduce", 0, place(8, 4)).total == pytest.approx(2 * within.total + between.total)


def test_a_link_of_a_node_is_shared_by_those_that_use_it():
    alone, eight = (place(1, 4, between=ETHERNET, neighbours=n) for n in (1, 8))
    assert seconds("all-gather", 1e12, eight).link == pytest.approx(8 * seconds("all-gather", 1e12, alone).link)
    of_its_own = (place(1, 4, neighbours=n) for n in (1, 8))
    assert len({seconds("all-gather", 1e12, one) for one in of_its_own}) == 1


@pytest.mark.parametrize(
    ("group", "stride", "inside", "nodes"),
    [(8, 1, 8, 1), (16, 1, 8, 2), (4, 2, 4, 1), (8, 2, 4, 2), (4, 8, 1, 4), (4, 16, 1, 4), (12, 1, 6, 2), (1, 1, 1, 1)],
)
def test_where_a_group_is(group, stride, inside, nodes):
    found = H100.place(group, stride, group * stride)
    assert (found.inside, found.nodes) == (inside, nodes)


# --- layers and plans


def test_the_axes_are_those_of_the_signatures():
    """A letter that is split is in the arrays that the table says, and in no other."""
    for name, axes in AXES.items():
        op = specs()[name]
        first, result = op.inputs[0].axes, op.outputs[0].axes
        trained = [a for a in op.inputs if a.name in op.wrt and axes.rows not in a.axes]
        assert axes.rows == first[0], name
        assert bool(trained) == (name in ("linear", "conv2d", "linear_cross_entropy"))
        if axes.columns:
            assert axes.columns in result
            assert all(axes.columns in a.axes for a in trained)
        if axes.sums:
            assert axes.sums not in result
            assert [axes.sums in a.axes for a in trained] == [True, False]
        if axes.vocabulary:
            assert axes.vocabulary not in result
            assert all(axes.vocabulary in a.axes for a in trained)


def test_what_is_a_sum_follows_from_the_letters():
    net = given.of_widths("8-16-8-4")
    inside = net.layers[1]
    for split, forward, backward in (("columns", [], ["x"]), ("sums", ["y"], []), (None, [], []), ("rows", [], [])):
        found = [[a.name for a in arrays] for arrays in inside.sums(split)]
        assert found == [forward, backward]
    # The network's own input has no gradient.
    assert net.layers[0].sums("columns") == ((), ())


def test_plans_go_column_row_and_into_the_loss():
    odd, even = given.of_widths("8-16-8-4"), given.of_widths("8-16-4")
    assert tensor_plan(odd, 2).splits == {
        "linear1": "columns", "linear2": "sums", "linear3": "columns", "loss": "vocabulary",
    }  # fmt: skip
    assert tensor_plan(even, 2).splits == {"linear1": "columns", "linear2": "sums"}
    assert vocabulary_plan(even, 2).splits == {"linear2": "columns", "loss": "vocabulary"}
    assert vocabulary_plan(given.of_widths("8-16-4", "mse_loss"), 2).refused == "no loss over classes"
    fused = given.of_widths("8-16-8-4", "linear_cross_entropy")
    assert tensor_plan(fused, 2).splits == {"linear1": "columns", "linear2": "sums", "loss": "vocabulary"}
    assert tensor_plan(even, 3).refused == "N = 16 of linear1 over 3"
    assert vocabulary_plan(even, 8).refused == "N = 4 of linear2 over 8"


def test_what_lies_between_a_column_and_a_row_is_split_too():
    net = scaled.network("cifar-lenet")
    splits = tensor_plan(net, 2).splits
    assert splits == {
        "conv1": "columns", "pool1": "columns", "conv2": "sums", "linear1": "columns", "linear2": "sums",
        "linear3": "columns", "loss": "vocabulary",
    }  # fmt: skip
    pool = next(x for x in net.layers if x.name == "pool1")
    assert pool.at(3, "columns", 2).sizes["C"] == 3
    net = scaled.network("sigmoid-net")
    assert tensor_plan(net, 2).splits == {"linear1": "columns", "linear1.sigmoid": "columns", "linear2": "sums"}
    assert net.layers[1].at(5, "columns", 2).sizes["E"] == 5 * 4


def test_groups_are_not_split():
    conv = layer.Layer("conv", "conv2d", (("B", 1), ("D", 1), ("H", 4), ("W", 4), ("F", 4), ("R", 3), ("S", 3)),
                       (("groups", 4),))  # fmt: skip
    assert tensor_plan(layer.Network("n", (conv, replace(conv, name="two")), 1), 2).refused == "conv has groups"


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workloads_network_is_the_one_that_is_trained(name):
    """Parameters, FLOPs of its products by the layers' own shapes, and a prediction by every strategy."""
    net, one = scaled.network(name), WORKLOADS[name]
    shapes = one.network.parameters()
    assert net.parameters() == sum(math.prod(s) for s in shapes.values())
    assert (net.batch, net.optimizer) == (one.batch, one.optimizer.kind)
    spots = {p.name: math.prod(p.after[1:]) for p in one.network.placed()}
    products = sum(
        (2 * math.prod(shapes[f"{layer_name}.weight"]) + shapes[f"{layer_name}.bias"][0]) * spots[layer_name]
        for layer_name in {key.partition(".")[0] for key in shapes}
    )
    assert sum(x.at(1).flops()["forward"] for x in net.trained) == products
    assert best(net, H100, 4, one.batch, "float32").seconds < math.inf


def test_shapes_agree_from_layer_to_layer():
    for name in WORKLOADS:
        at = [x.at(2) for x in scaled.network(name).layers]
        for before, after in itertools.pairwise(at):
            made, taken = (
                math.prod(a.shape(x.sizes)) for a, x in ((before.results[0], before), (after.inputs[0], after))
            )
            assert made == taken, (name, after.case.name)


# --- strategies


def test_collectives_of_two_layers_by_hand():
    """M = 6 rows, 8-16-4: weights 128 and 64 numbers, biases 16 and 4."""
    net = given.of_widths("8-16-4")
    assert collectives(net, Plan(), Degrees(data=2), 6, "float32") == [Collective("all-reduce", 4 * 212, 2)]
    assert sorted(collectives(net, Plan(), Degrees(sharded=2), 6, "float32")) == sorted(
        [Collective("all-gather", 4 * 144, 2)] * 2 + [Collective("all-gather", 4 * 68, 2)] * 2
        + [Collective("reduce-scatter", 4 * 144, 2), Collective("reduce-scatter", 4 * 68, 2)]
    )  # fmt: skip
    # Row layer's y[6 4]; the first layer's dx is not taken.
    assert collectives(net, tensor_plan(net, 2), Degrees(tensor=2), 6, "bfloat16") == [
        Collective("all-reduce", 2 * 6 * 4, 2)
    ]
    # Numbers of 6 rows, dx[6 16] of the last layer.
    numbers = Collective("all-gather", 2 * 4 * strategies.NUMBERS * 6, 2)
    assert sorted(collectives(net, vocabulary_plan(net, 2), Degrees(tensor=2), 6, "float32")) == sorted(
        [numbers, Collective("all-reduce", 4 * 6 * 16, 2)]
    )
    # The fused loss adds dh up in float32.
    fused = given.of_widths("8-16-4", "linear_cross_entropy")
    assert collectives(fused, vocabulary_plan(fused, 2), Degrees(tensor=2), 6, "bfloat16") == [
        numbers, Collective("all-reduce", 4 * 6 * 16, 2)
    ]  # fmt: skip
    both = collectives(net, tensor_plan(net, 2), Degrees(2, 2, 2), 6, "float32")
    assert Collective("all-reduce", 4 * (8 * 8 + 8) // 2, 2) in both
    assert Collective("all-gather", 4 * (8 * 8 + 8), 2) in both
    assert collectives(net, Plan(), Degrees(), 6, "float32") == []


def test_shares_are_rounded_up():
    net = given.of_widths("8-5")
    (gathered, *_) = collectives(net, Plan(), Degrees(sharded=2), 1, "float32")
    assert gathered.size == 4 * 2 * (3 * 8 + 3)


def test_buckets_close_at_their_sizes():
    """2 MiB weights: the first bucket closes at 1 MiB, the next at 25 MiB, the rest is the last."""
    net = given.of_widths("-".join(["512", *["1024"] * 20, "8"]))
    found = [size for _, size in buckets(net, Plan(), "float32")]
    whole = 4 * (1024 * 1024 + 1024)
    assert found[0] == 4 * (8 * 1024 + 8) + whole
    assert found[1] == 7 * whole
    assert sum(found) == 4 * net.parameters()
    assert sum(size for _, size in buckets(net, Plan(), "bfloat16")) == 2 * net.parameters()


# --- the model


def test_a_step_of_one_device_is_the_sum_of_its_layers():
    """A large linear layer, bound by its FLOPs: forward and, without the input's gradient, as much again."""
    net = replace(given.of_widths("4096-4096", "mse_loss"), optimizer=None)
    one = predict(net, H100, Degrees(), 2**16, "bfloat16", Plan())
    product = 2 * 2**16 * 4096 * 4096 / 989.4e12
    assert one.parts["compute"] == pytest.approx(2 * product, rel=1e-3)
    # The loss reads and writes M N numbers a few times.
    assert one.parts["memory"] == pytest.approx((2 + 4) * 2 * 2**16 * 4096 / 3.35e12, rel=1e-3)
    assert one.seconds == pytest.approx(sum(one.parts.values()))
    assert (one.bound, one.sent, one.collectives) == ("compute", 0, ())


def test_gradients_are_added_behind_backward():
    """Two equal layers: of the last one's gradient a part is hidden, of the first one's none."""
    net = replace(given.of_widths("4096-4096-4096", "mse_loss"), optimizer=None)
    alone = predict(net, H100, Degrees(), 2**14, "bfloat16", Plan())
    two = predict(net, H100, Degrees(data=2), 2**15, "bfloat16", Plan())
    first, last = (size for _, size in reversed(buckets(net, Plan(), "bfloat16")))
    waited = seconds("all-reduce", first, H100.place(2, 1, 2))
    assert (first, last) == (2 * 4096 * 4097, 2 * 4096 * 4097)
    assert two.seconds == pytest.approx(alone.seconds + waited.total)
    assert two.parts["link"] + two.parts["latency"] == pytest.approx(waited.total)


def test_parameters_are_gathered_ahead():
    """Large layers: only forward's first all-gather and backward's last scatter are waited for, if the loss is long."""
    net = replace(given.of_widths("4096-4096-4096-4096", "mse_loss"), optimizer=None)
    alone = predict(net, H100, Degrees(), 2**16, "bfloat16", Plan())
    two = predict(net, H100, Degrees(sharded=2), 2**17, "bfloat16", Plan())
    each = seconds("all-gather", 2 * 4096 * 4097, H100.place(2, 1, 2)).total
    assert two.seconds == pytest.approx(alone.seconds + 2 * each)
    # A gather that takes longer than a layer is waited for at every layer.
    slow = replace(H100, within=replace(NVLINK, bandwidth=1e9))
    each = seconds("all-gather", 2 * 4096 * 4097, slow.place(2, 1, 2)).total
    slowed = predict(net, slow, Degrees(sharded=2), 2**17, "bfloat16", Plan())
    assert slowed.seconds > 9 * each


def test_the_parts_are_the_step():
    net = scaled.network("digits-cnn")
    for n in (1, 2, 8, 32):
        for degrees, plan in mixes(net, n):
            one = predict(net, H100, degrees, 160, "float32", plan)
            if not one.refused:
                assert one.seconds == pytest.approx(sum(one.parts.values()))
                assert one.sent == pytest.approx(sum(c.sent for c in one.collectives))


def test_memory_by_hand():
    """8-16-4, 6 rows, SGD: of 212 numbers parameters and momentum; the most is needed at the first layer.

    There are x[6 8], y[6 16], y's gradient, and the gradients of all parameters. In shares the first layer's 144 are
    whole, and so are its parameters; of the second one's 68 gradients there is half.
    """
    net = replace(given.of_widths("8-16-4"), optimizer="sgd")
    first = 6 * (8 + 16) + 6 * 16 + 212
    assert memory(net, Plan(), Degrees(), 6, "float32") == 4 * (2 * 212 + first)
    # Masters and momentum are float32.
    assert memory(net, Plan(), Degrees(), 6, "bfloat16") == (2 + 4 + 4) * 212 + 2 * first
    shares = 6 * (8 + 16) + 6 * 16 + 144 + 144 + 34
    assert memory(net, Plan(), Degrees(sharded=2), 6, "float32") == 4 * (2 * 106 + shares)


@pytest.mark.parametrize(("text", "rows"), [("64-(256-64)x2-512", 128), ("64-(256-64)x2-10", 2048)])
def test_memory_is_what_torch_allocates(monkeypatch, text, rows):
    """Beyond parameters and input: bytes that torch's profiler counts in forward and backward."""
    torch = pytest.importorskip("torch")
    import gradlab.torch as lab
    from gradlab.autodiff.frameworks.side import side
    from gradlab.profiling.bench.peak import peak_bytes

    if torch.cuda.is_available():
        pytest.skip("the tensors here are a CPU's")
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    layers = [lab.Linear(k, n) for k, n in itertools.pairwise(given.widths(text))]
    params = [p for one in layers for p in one.parameters()]
    x, t = torch.randn(rows, layers[0].in_features), torch.randint(layers[-1].out_features, (rows,))

    def call():
        y = x
        for one in layers[:-1]:
            y = lab.linear(y, one.weight, one.bias, activation="relu")
        return torch.autograd.grad(lab.cross_entropy(layers[-1](y), t), params)

    call()
    net = replace(given.of_widths(text), optimizer=None)
    predicted = memory(net, Plan(), Degrees(), rows, "float32") - 4 * net.parameters() - x.nbytes
    assert peak_bytes(side("torch"), call) == pytest.approx(predicted, rel=0.1)


def test_the_best_mix_is_the_best_of_all():
    net = given.of_widths("1024-(4096-1024)x2-512")
    every = [predict(net, H100, d, 4096, "bfloat16", plan) for d, plan in mixes(net, 16)]
    assert {d.devices for d, _ in mixes(net, 16)} == {16}
    assert len({(d.data, d.sharded, d.tensor) for d, _ in mixes(net, 16)}) == 15
    assert best(net, H100, 16, 4096, "bfloat16").seconds == min(one.seconds for one in every)


def test_the_best_mix_fits_where_one_does():
    """What is quickest needs more memory than a device has; then the quickest of those that fit."""
    net = given.of_widths("4096-(16384-4096)x32-50304")
    roomy = best(net, replace(H100, memory=0), 512, 2**20, "bfloat16")
    small = replace(H100, memory=roomy.memory - 1)
    fits = best(net, small, 512, 2**20, "bfloat16")
    assert roomy.memory > small.memory > fits.memory
    assert roomy.seconds < fits.seconds
    every = [predict(net, H100, d, 2**20, "bfloat16", plan) for d, plan in mixes(net, 512)]
    tight = best(net, replace(H100, memory=1.0), 512, 2**20, "bfloat16")
    assert tight.memory == min(one.memory for one in every if not one.refused) > 1.0


def test_every_gpu_has_memory_and_links():
    assert set(named.NODES) == set(GPUS)
    for name, gpu in GPUS.items():
        assert gpu.memory >= 24e9
        found = named.machine(name.lower())
        assert found.within.bandwidth >= found.between.bandwidth


# --- the command


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1..8", (1, 2, 4, 8)), ("3", (3,)), ("8, 1,6", (1, 6, 8)), ("3..20", (3, 4, 8, 16, 20)), ("1,2..4", (1, 2, 4))],
)
def test_numbers_of_devices(text, numbers):
    assert parsed_devices(text) == numbers


def test_widths():
    assert given.widths("64-128-10") == [64, 128, 10]
    assert given.widths("4-(16-4)x3-5") == [4, 16, 4, 16, 4, 16, 4, 5]
    assert given.widths("8-(2)x2") == [8, 2, 2]
    assert given.widths("conv9d") == given.widths("64") == given.widths("4-(16-4)-5") == []


BAD = [
    (["conv9d"], "target is 'conv9d', wanted widths as 64-128-10 or one of linear, conv2d,"),
    (["adam"], "op is 'adam', wanted one with a batch: linear, conv2d,"),
    (["digits-mlp", "--devices", "0"], "devices are '0', wanted numbers from 1 to 1048576 as 1..4096"),
    (["digits-mlp", "--devices", "many"], "devices are 'many', wanted numbers"),
    (["digits-mlp", "--devices", "8..2"], "devices are '8..2', wanted numbers"),
    (["digits-mlp", "--gpu", "H1000"], "gpu is 'H1000', wanted one of A100, A100-PCIe,"),
    (["digits-mlp", "--links", "string"], "link is 'string', wanted one of nvlink3, nvlink4,"),
    (["digits-mlp", "--links", "ndr,ndr,ndr"], "links are 'ndr,ndr,ndr', wanted one, or two"),
    (["digits-mlp", "--dtype", "int8"], "dtype is 'int8', wanted one of float64,"),
    (["digits-mlp", "--strategy", "magic"], "strategy is 'magic', wanted one of data, sharded,"),
    (["digits-mlp", "--sizes", "M=3"], "--sizes is 'M=3', wanted none beside digits-mlp"),
    (["digits-mlp", "--loss", "mse_loss"], "--loss is 'mse_loss', wanted none beside digits-mlp"),
    (["linear", "--sizes", "Q=3"], "sizes are 'Q=3' with axis 'Q', wanted one of M, K, N"),
    (["linear", "--sizes", "M=0"], "sizes are 'M=0' with 'M=0', wanted M= and a whole number of at least 1"),
    (["8-0-4"], "widths are '8-0-4', wanted at least two, each at least 1"),
    (["8-4", "--loss", "relu"], "loss is 'relu', wanted one of cross_entropy,"),
    (["8-4", "--batch", "8", "--batch-per-device", "8"], "--batch is 8, wanted none beside --batch-per-device"),
    (["8-4", "--plot", "/nowhere/at/all.png"], "output is /nowhere/at/all.png, wanted a file in a folder that exists"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line(monkeypatch, capsys, words, message):
    code, out, err = run(monkeypatch, capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"gradlab: scale: {message}")
    assert err.count("\n") == 1


def test_what_cannot_be_shared_out_is_said(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "digits-mlp", "--devices", "1,4,128")
    text = " ".join(out.split())
    assert (code, err) == (0, "")
    assert "data from 128 devices: a batch of 96 for 128" in text
    assert "vocabulary from 4 devices: N = 10 of linear2 over 4" in text
    assert "Assumed:" in text
    assert "Not modelled: stragglers" in text


def test_the_tables_fit_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(monkeypatch, capsys, "4096-(16384-4096)x8-50304", "--dtype", "bfloat16", "--batch", "1048576")
    assert "…" not in out
    assert "80 GB that a device has" in out


def test_json_has_what_the_table_has(monkeypatch, capsys, tmp_path):
    path = tmp_path / "scale.json"
    words = ["linear", "--sizes", "M=64 K=32 N=16", "--devices", "1,2", "--json", str(path)]
    assert run(monkeypatch, capsys, *words)[0] == 0
    data = json.loads(path.read_text())
    assert data["about"] == "M=64 K=32 N=16"
    steps = {(s["strategy"], s["devices"]): s for s in data["steps"]}
    assert steps["data", 2]["collectives"] == [
        {"kind": "all-reduce", "bytes": 4 * (32 * 16 + 16), "devices": 2, "times": 1}
    ]
    assert steps["data", 2]["rows"] == 32
    # An op alone is split along its columns; its input has a gradient.
    assert steps["tensor", 2]["collectives"] == [{"kind": "all-reduce", "bytes": 4 * 64 * 32, "devices": 2, "times": 1}]
    assert "refused" in steps["vocabulary", 2]


def test_a_batch_for_each_device_grows(monkeypatch):
    args = checked_args(given.of_widths("8-4"), "H100", None, None, "1,4", None, 16, "float32", ("data",), None, None)
    assert {n: one.batch for n, one in predictions(args)["data"].items()} == {1: 16, 4: 64}


def test_efficiency_is_of_rows_a_second_and_device():
    """Twice the devices in half the time, or on twice the rows in the same time, is all that there is."""
    args = checked_args(given.of_widths("8-4"), "H100", None, None, "1,4", None, 16, "float32", ("data",), None, None)
    one, four = (Prediction(Degrees(data=n), 2.0, batch=16 * n) for n in (1, 4))
    base = table.baseline(args, {"data": {1: one, 4: four}})
    assert base == 8.0
    assert table.efficiency(four, base) == 1.0
    assert table.efficiency(replace(four, seconds=4.0), base) == 0.5
    assert table.efficiency(replace(four, batch=16), base) == 0.25
    assert table.efficiency(Prediction(Degrees(), refused="why"), base) is None


def test_the_figure_is_written(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "scale.png"
    assert run(monkeypatch, capsys, "digits-mlp", "--devices", "1..16", "--plot", str(path))[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")


# --- this machine


def test_links_that_cores_work_hide_nothing():
    """The gradients' sum is waited for, bucket by bucket."""
    net = replace(given.of_widths("4096-4096-4096", "mse_loss"), optimizer=None)
    hidden = predict(net, H100, Degrees(data=2), 2**15, "bfloat16", Plan())
    waited = predict(net, replace(H100, overlaps=False), Degrees(data=2), 2**15, "bfloat16", Plan())
    assert waited.seconds == pytest.approx(hidden.seconds + waited.parts["link"] / 2 + waited.parts["latency"] / 2)


def test_more_devices_than_cores_take_turns():
    two = replace(H100, cores=2)
    assert two.slowed(2) == two
    four = two.slowed(4)
    assert four.ceilings.rates["float32"] == two.ceilings.rates["float32"] / 2
    assert four.ceilings.bandwidth == two.ceilings.bandwidth / 2
    assert (four.within.bandwidth, four.within.hop) == (two.within.bandwidth / 2, two.within.hop * 2)
    assert four.launch == 2 * two.launch


def test_groups_lie_where_their_strides_put_them():
    """Tensor groups are neighbours; the gradients' sum goes between nodes, once for all of a node's links."""
    net = given.of_widths("64-128-64")
    two = {n: predict(net, replace(H100, node=n), Degrees(data=2, tensor=4), 64, "bfloat16", tensor_plan(net, 4))
           for n in (4, 8)}  # fmt: skip
    (bucket,) = [c.size for c in two[4].collectives if c.devices == 2]
    between = seconds("all-reduce", bucket, place(1, 2)).total - seconds("all-reduce", bucket, place(2)).total
    assert two[4].seconds - two[8].seconds == pytest.approx(between)
    far = predict(net, replace(H100, node=4), Degrees(sharded=2, tensor=4), 64, "bfloat16", tensor_plan(net, 4))
    near = predict(net, H100, Degrees(sharded=2, tensor=4), 64, "bfloat16", tensor_plan(net, 4))
    assert far.seconds > near.seconds


def test_what_an_algorithm_sends_more_is_counted():
    """gloo's reduce-scatter is an all-reduce."""
    net = given.of_widths("8-16-4")
    gloo = replace(H100, factors=(("reduce-scatter", 2.0),))
    plain, twice = (predict(net, m, Degrees(sharded=2), 6, "float32", Plan()) for m in (H100, gloo))
    assert twice.sent - plain.sent == 4 * 212 / 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--links", "ndr"], "links are 'ndr', wanted none beside --gpu this, whose links are measured"),
        (["--node", "8"], "node is 8, wanted none beside --gpu this, whose links are measured"),
    ],
)
def test_what_is_measured_is_not_given(monkeypatch, capsys, words, message):
    code, _, err = run(monkeypatch, capsys, "8-4", "--gpu", "this", *words)
    assert (code, err) == (2, f"gradlab: scale: {message}\n")


def test_this_machine_is_measured(monkeypatch, capsys):
    """Two processes with tiny products: rates above zero, and the table names them."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    from gradlab.profiling.bench import ceilings
    from gradlab.profiling.scale import this_torch

    measured = {}
    monkeypatch.setattr(this_torch, "run_jobs", lambda jobs: measured.update(jobs=jobs) or [H100])
    assert named.machine("this", dtype="float32") is H100
    assert [job.args[:2] for job in measured["jobs"]] == [(0, 2), (1, 2)]
    monkeypatch.setattr(ceilings, "LARGEST", {"cpu": 2**20, "cuda": 2**20})
    monkeypatch.setattr(ceilings, "PRODUCTS", {"cpu": (64,), "cuda": (64,)})
    monkeypatch.setattr(this_torch, "LARGE", 2**16)
    monkeypatch.setattr(this_torch, "TURNS", 2)
    monkeypatch.setattr(torch.distributed, "FileStore", lambda path, world: torch.distributed.HashStore())
    found = this_torch.ranks(0, 1, "", "float32")
    assert found.ceilings.rates["float32"] > 1e6
    assert found.ceilings.bandwidth > 1e6
    assert 0 < found.launch < 1
    assert (found.overlaps, found.memory) == (False, 0)
