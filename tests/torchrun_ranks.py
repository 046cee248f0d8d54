"""What each rank of `test_torchrun.py` runs: shared runs against those of one process, folders, and bad input.

`torchrun ... -m tests.torchrun_ranks all FOLDER` runs everything, and at last rank 1 fails. With `ends` in place of
`all` it ends in a way of its own in each attempt of torchrun's, in the middle of `gradlab train` as the command line
has it.
"""

import contextlib
import io
import itertools
import json
import os
import resource
import signal
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import gradlab
from gradlab import cli
from gradlab.workloads import command, folder
from gradlab.workloads.command import TrainArgs
from gradlab.workloads.ranks import SpreadArgs
from gradlab.workloads.ranks_torch import together
from gradlab.workloads.training import Training, TrainingPlan
from gradlab.workloads.workload import Optimizer, batches
from gradlab.workloads.world import torchrun

WORLD = torchrun()
ADAM, SGD = Optimizer("adam", 2e-3), Optimizer("sgd", 0.1, 0.9)
# Every network, both kinds of layers, both optimizers, all precisions, both engines.
RUNS = (
    ("linear-regression", "gradlab", "float32", Optimizer("sgd", 0.05), 4, "DDP"),
    ("linear-regression", "native", "float32", ADAM, 4, "FSDP"),
    ("sigmoid-net", "gradlab", "float32", Optimizer("sgd", 2.0, 0.9), 128, "FSDP"),
    ("digits-mlp", "gradlab", "float32", SGD, 96, "DDP"),
    ("digits-mlp", "gradlab", "fp16", ADAM, 96, "FSDP"),
    ("digits-mlp", "native", "fp16", SGD, 96, "DDP"),
    ("digits-mlp", "native", "bf16", ADAM, 96, "FSDP"),
    ("digits-cnn", "gradlab", "float32", ADAM, 32, "FSDP"),
    ("digits-cnn", "gradlab", "bf16", SGD, 32, "DDP"),
    ("recommender", "gradlab", "fp16", ADAM, 256, "DDP"),
    ("text-classifier", "gradlab", "float32", ADAM, 256, "DDP"),
)
# Of two float32 curves: sums of up to 256 terms, and what the steps make of the difference. In a lower precision each
# process rounds its share of a gradient by itself.
RTOL = {"float32": 2e-5, "bf16": 2**-7, "fp16": 2**-9}


def plan(name, layers, precision, optimizer, batch):
    return TrainingPlan(name, "torch", layers, precision, optimizer, batch, 4, 0)


def first(run, count):
    return list(itertools.islice(run.steps(), count))


def curves(ranks, path):
    """Losses, weights and scores are those of one process; what one engine saved goes on under the other."""
    for number, (*asked, kind) in enumerate(RUNS):
        one = plan(*asked)
        data = one.workload.load(0, None)
        # A number of rows that the processes cannot share evenly.
        data = data._replace(test_x=data.test_x[:67], test_t=data.test_t[:67])
        rtol, name = RTOL[one.precision], f"{one} {kind}"
        alone, shared = Training(one, data), Training(one, data, None, WORLD._replace(kind=kind))
        np.testing.assert_allclose(first(shared, 2), first(alone, 2), rtol=rtol, err_msg=name)
        shared.save_folder(path / str(number), ranks.token)
        ranks.outcome("")
        other = Training(one, data, None, WORLD._replace(kind="DDP" if kind == "FSDP" else "FSDP"))
        other.restore(folder.read(path / str(number)))
        assert other.losses == shared.losses
        state, again = shared.state(), other.state()
        assert state.keys() == again.keys()
        assert len(state) > (4 if one.optimizer.kind == "adam" else 2)
        for key, value in state.items():
            np.testing.assert_array_equal(value, again[key], err_msg=f"{name}: {key}")
        want = first(alone, 2)
        for run in (shared, other):
            np.testing.assert_allclose(first(run, 2), want, rtol=rtol, err_msg=name)
        if one.optimizer.kind == "sgd":
            weights = alone._trainer.weights()
            for key, got in shared._trainer.weights().items():
                # Of each weight's steps the sum is compared, which is of the gradients' size and the rate's.
                atol = rtol * one.optimizer.lr * 10
                np.testing.assert_allclose(got, weights[key], rtol=rtol, atol=atol, err_msg=f"{name}: {key}")
        # Of 67 rows two may lie where rounding decides.
        assert shared.test() == pytest.approx(alone.test(), rel=1e-3, abs=2.5 / 67), name


def overflow(ranks, path):
    """An overflow in one rank's rows halves the scale of all, and no rank moves a weight."""
    one = plan("digits-mlp", "gradlab", "fp16", ADAM, 96)
    data = one.workload.load(0, None)
    x, t = (part[WORLD.part(96)] for part in next(batches(data, 96, 1)))
    for kind in ("DDP", "FSDP"):
        trainer = Training(one, data, None, WORLD._replace(kind=kind))._trainer
        trainer.step(x, t)
        before = trainer.state()
        trainer.step(x * 1e4 if ranks.world.rank == 1 else x, t)
        after = trainer.state()
        assert after["scaler.scale"] == before["scaler.scale"] / 2 == 32768
        for key in after:
            if not key.startswith("scaler."):
                np.testing.assert_array_equal(after[key], before[key], err_msg=f"{kind}: {key}")
        trainer.step(x, t)
        assert not np.array_equal(trainer.state()["linear1.weight"], after["linear1.weight"])


def full_disk(ranks, path):
    """A disk that is full for one rank is an error of all; the run before stays, and no half of the new one does."""
    one = plan("digits-mlp", "gradlab", "float32", ADAM, 96)
    run = Training(one, one.workload.load(0, None), None, WORLD._replace(kind="FSDP"))
    path = path / "full"
    first(run, 1)
    run.save_folder(path, ranks.token)
    ranks.outcome("")
    old = folder.read(path)
    first(run, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if ranks.world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"too large|a file was cut short") as caught:
            run.save_folder(path, ranks.token)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    ranks.outcome("")
    assert folder.read(path) == old
    assert sorted(os.listdir(path)) == ["run.json", old.arrays.name]
    ranks.outcome("")
    run.save_folder(path, ranks.token)
    ranks.outcome("")
    assert len(folder.read(path).losses) == 2
    assert len(os.listdir(path)) == 2


def signalled(ranks, path):
    """SIGTERM of one rank ends all after the same step, the next one."""
    one = plan("linear-regression", "native", "float32", SGD, 4)
    run = Training(one, one.workload.load(0, None), None, WORLD)
    for number, _ in enumerate(run.steps()):
        if ended := run.agreed(15 if number == 1 and ranks.world.rank == 1 else 0):
            break
    assert (number, ended) == (2, 15)


def said(args, spread=SpreadArgs(), **options):  # noqa: B008 - a tuple
    """(exit code, lines on stdout, lines on stderr) of `gradlab train`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command.train(args, spread=spread, **options)
    # A process that failed after it joined the others would end here.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code, out.getvalue().splitlines(), err.getvalue().splitlines()


NET = TrainArgs("sigmoid-net", ("torch",), "native", epochs=2)


def commands(path):
    """Only the first rank prints; a run saved here goes on under fully_shard."""
    code, out, err = said(NET._replace(epochs=1), save=path / "run")
    assert code == 0, err
    if WORLD.leads:
        assert out[1].endswith(f", {WORLD.size} processes, DDP"), out
        assert out[2] == f"saved to {path / 'run'}"
        assert any("loss" in line for line in err)
    else:
        assert (out, err) == ([], [])
    code, out, err = said(TrainArgs(epochs=2), SpreadArgs(fsdp=True), resume=path / "run", save=path / "further")
    assert code == 0, err
    assert not WORLD.leads or out[1].endswith(f", {WORLD.size} processes, FSDP")
    code, out, _ = said(TrainArgs())
    assert (code, bool(out)) == (0, WORLD.leads)


def bad_input(path):
    """One line on every rank and exit code 2: whatever one of them has otherwise, all know."""
    rank, last = WORLD.rank, WORLD.size - 1
    if WORLD.leads:
        (path / "file").write_text("")
        (path / "others").mkdir()
        (path / "others" / "thesis.tex").write_text("")
        text = json.loads((path / "run" / "run.json").read_text())
        for name, changed in (("jaxs", {"side": "jax", "plan": text["plan"] | {"side": "jax"}}), ("broken", {})):
            (path / name / text["arrays"]).mkdir(parents=True)
            (path / name / "run.json").write_text(json.dumps(text | changed))
    # No rank goes on before all of it is there.
    assert together(WORLD, 60, lambda ranks: ranks.begin({}) or 0) == 0
    on_last = {} if rank == last else None
    late = (
        f"train: rank {last} has ended (train: lr is -1, wanted a positive number), wanted all {WORLD.size} processes"
    )
    two = f"of rank {last} is"
    cases = [
        (NET._replace(batch=127), {}, f"train: batch-size is 127, wanted a multiple of the {WORLD.size} processes"),
        (NET._replace(sides=("jax",)), {}, "train: --side is jax under torchrun, wanted torch"),
        (NET, {"both": True}, "train: --compare is given under torchrun, wanted one process"),
        (NET, {"save": path / "file"}, f"{path / 'file'}: is a file, wanted a folder"),
        (NET, {"save": path / "run.safetensors"}, f"{path / 'run.safetensors'}: is a file, wanted a folder"),
        (NET, {"save": path / "others"}, f"{path / 'others'}: holds thesis.tex, wanted a new folder or one written"),
        (TrainArgs(), {"resume": path / "file"}, "train: --save is missing, wanted a folder, as --resume names a file"),
        (
            TrainArgs("digits-cnn"),
            {"resume": path / "run"},
            f"{path / 'run'}: its name is sigmoid-net, wanted digits-cnn",
        ),
        (TrainArgs("digits-cnn"), {"load": path / "run"}, f"{path / 'run'}: holds linear1.bias, linear1.weight, "),
        (TrainArgs(), {"resume": path / "jaxs"}, f"train: side of {path / 'jaxs'} is jax, wanted torch under torchrun"),
        (TrainArgs(sides=("torch",)), {"resume": path / "jaxs"}, f"{path / 'jaxs'}: its side is jax, wanted torch"),
        (TrainArgs(), {"resume": path / "broken"}, "wanted what torch.distributed.checkpoint wrote"),
        (NET._replace(lr=-1.0 if rank == last else 0.1), {}, "train: lr is -1, " if rank == last else late),
        (NET._replace(seed=rank), {}, "train: seed of rank 1 is 1, wanted 0 as on rank 0"),
        (NET._replace(epochs=3 if rank == last else 2), {}, f"train: epochs {two} 3, wanted 2 as on rank 0"),
        (NET, {"save": None if on_last is None else path / "own"}, f"train: save {two} given, wanted not given"),
        (NET, {"load": None if on_last is None else path / "further"}, f"train: weights {two} checksum "),
        (NET, {"spread": SpreadArgs(fsdp=rank == last)}, f"train: spread {two} FSDP, wanted DDP as on rank 0"),
    ]
    for args, options, message in cases:
        code, out, err = said(args, **options)
        assert (code, out) == (2, []), (message, err)
        assert len(err) == 1, err
        assert message in err[0], (message, err)
        assert err[0].startswith("gradlab: ")
    for module, name in ((gradlab, "gradlab"), (torch, "torch")):
        with mock.patch.object(module, "__version__", "0.9" if rank == last else module.__version__):
            code, out, err = said(NET)
        version = gradlab.__version__ if module is gradlab else torch.__version__
        want = f"gradlab: train: {name} {two} 0.9, wanted {version} as on rank 0"
        assert (code, out, err) == (2, [], [want])


def all_of_it(path):
    def work(ranks):
        ranks.begin({})
        for part in (curves, overflow, full_disk, signalled):
            torch.manual_seed(0)
            part(ranks, path)
        return 0

    torch.set_num_threads(1)
    assert together(WORLD, 60, work) == 0
    commands(path)
    bad_input(path)
    sys.stdout.write(f"rank {WORLD.rank} found all of it right\n")
    sys.stdout.flush()

    def fails(ranks):
        ranks.begin({})
        one = plan("linear-regression", "native", "float32", SGD, 4)
        for _ in Training(one, one.workload.load(0, None), None, WORLD).steps():
            if ranks.world.rank == 1:
                raise ZeroDivisionError("a bug of rank 1")
        return 0

    sys.exit(together(WORLD, 60, fails))


def ends(path):
    """Rank 1 is killed in the first attempt of torchrun's and stops answering in the second.

    Each time in its fourth step, before that is saved.
    """
    attempt, steps = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), Training.steps

    def until_the_third(self):
        for number, loss in enumerate(steps(self)):
            if number == 3 and WORLD.rank == 1:
                if attempt == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                # Until torchrun's SIGTERM.
                signal.pause()
            yield loss

    Training.steps = until_the_third
    words = ["linear-regression", "--side", "torch", "--layers", "native", "--batch-size", "4", "--epochs", "1000"]
    sys.argv = ["gradlab", "train", *words, "--save", str(path / "run"), "--timeout", "10"]
    cli.main()


if __name__ == "__main__":
    {"all": all_of_it, "ends": ends}[sys.argv[1]](Path(sys.argv[2]))
