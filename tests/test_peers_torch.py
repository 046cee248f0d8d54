"""The lab's kernels beside those of others: what is found of inductor and Liger-Kernel, and what the command says."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from rich.console import Console

from gradlab.kernels.spec import Case
from gradlab.profiling.machine_code import command, peers
from gradlab.profiling.machine_code.targets import target

SM_90 = target("sm_90")


def rows(op, sizes, **of):
    wanted = peers.compared(op)[0]
    wanted = replace(wanted, case=Case("small", sizes, wanted.case.static), **of)
    return list(peers.rows(wanted, "bfloat16", SM_90, None))


def test_inductors_products_have_the_tiles_that_are_named():
    found = rows("linear", {"M": 512, "K": 256, "N": 512})
    assert {row.who for row in found} == {"gradlab", "inductor"}
    assert not [row.words for row in found if row.words]
    products = [row for row in found if row.who == "inductor" and row.code.counts.tensor]
    # Forward, dgrad and wgrad, by two tiles.
    tiles = [(row.code.options["BLOCK_M"], row.code.options["BLOCK_N"]) for row in products]
    assert tiles == [("128", "128")] * 3 + [("128", "256")] * 3
    assert [row.code.direction for row in products] == ["forward", "backward", "backward"] * 2
    for row in products:
        # FLOP of the product, and operands that come 128 bits at a time.
        assert row.code.executed.totals.operations * row.code.executed.programs == 2 * 512 * 256 * 512
        assert row.code.fact("wide_share") == 1
        assert 0.3 < row.share <= 1
        assert 5 < row.each < 200


def test_ligers_loss_writes_its_gradient_in_the_forward():
    pytest.importorskip("liger_kernel")
    (row,) = (row for row in rows("cross_entropy", {"M": 4, "V": 4096}) if row.who == "Liger")
    assert (row.code.kernel, row.code.direction) == ("liger_cross_entropy", "forward")
    # Read twice by the program that owns the row, which a count of distinct sectors has once; and written.
    assert row.traffic == pytest.approx(2, rel=0.05)
    assert 10 < row.each < 200
    assert row.share is None


def test_a_peer_that_is_not_there_has_a_line_and_one_that_fails_too(monkeypatch):
    found = rows("linear", {"M": 32, "K": 32, "N": 32}, peers=(("Absent", "no_such_package", "liger"),))
    assert [(row.who, row.words) for row in found if row.code is None] == [
        ("Absent", "no_such_package is not installed: pip install no-such-package")
    ]
    from gradlab.profiling.machine_code import peers_torch

    def fails(at, dtype):
        raise RuntimeError("it does\nnot work")

    monkeypatch.setattr(peers_torch, "liger", fails)
    found = rows("linear", {"M": 32, "K": 32, "N": 32}, peers=(("Liger", "torch", "liger"),))
    assert [row.words for row in found if row.code is None] == ["RuntimeError: it does not work"]


def inspected(tmp_path, monkeypatch, **args):
    with (tmp_path / "out").open("w") as file:
        words = {"op": "linear", "sides": [], "archs": None, "dtypes": None, "case": None, "gpu": None, "lines": False}
        words |= {"json": None, "check": False, "peers": True}
        status = command.inspect(command.InspectArgs(**words | args), Console(file=file, width=80))
    return status, (tmp_path / "out").read_text()


def test_the_table_and_the_file(tmp_path, monkeypatch):
    wanted = replace(peers.compared("linear")[0], case=Case("small", {"M": 128, "K": 64, "N": 128}), peers=())
    monkeypatch.setattr(command, "compared", lambda op: (wanted,))
    status, out = inspected(tmp_path, monkeypatch, json=tmp_path / "peers.json")
    assert status == 0
    assert "linear, bfloat16, sm_90; small: M 128, K 64, N 128" in out
    assert "gradlab  matmul" in out
    assert max(map(len, out.splitlines())) <= 80
    (case,) = json.loads((tmp_path / "peers.json").read_text())["cases"]
    assert case["instructions_per"] == "1000 multiply-adds"
    assert {kernel["of"] for kernel in case["kernels"]} == {"gradlab"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"op": "relu"}, "inspect: --peers came with relu, wanted one of linear, cross_entropy, linear_cross_entropy, conv2d"),
        ({"lines": True}, "inspect: --peers came with --lines, wanted an op, one dtype and one sm_ architecture alone"),
        ({"dtypes": ["int8"]}, "inspect: --peers came with dtype int8, wanted an op, one dtype and one sm_ architecture alone"),
        ({"archs": ["sm_80,sm_90"]}, "inspect: --peers came with sm_80, or several of a kind, wanted an op, one dtype and one sm_ architecture alone"),
        ({"archs": ["native"]}, "inspect: --peers came with native, or several of a kind, wanted an op, one dtype and one sm_ architecture alone"),
        ({"op": "own.py::f"}, "inspect: --peers came with own.py::f, wanted one of linear, cross_entropy, linear_cross_entropy, conv2d"),
    ],
)  # fmt: skip
def test_what_it_does_not_take(args, words, tmp_path, monkeypatch):
    with pytest.raises(ValueError) as error:
        inspected(tmp_path, monkeypatch, **args)
    assert str(error.value) == words
