"""The workloads by name."""

from gradlab.workloads import cifar, digits, generated, mnist, newsgroups
from gradlab.workloads.network import Conv, Dense, Flatten, Network, Pool
from gradlab.workloads.workload import Optimizer, Workload

_ADAM = Optimizer("adam", 1e-3)

WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            "linear-regression", Network((1,), (Dense(1),)), "mse_loss", Optimizer("sgd", 0.05),
            batch=5, epochs=200, load=generated.line,
        ),
        Workload(
            "sigmoid-net", Network((4,), (Dense(8, "sigmoid"), Dense(1, "sigmoid"))), "mse_loss",
            Optimizer("sgd", 2.0, 0.9), batch=128, epochs=100, load=generated.sigmoid_teacher,
        ),
        Workload(
            "digits-mlp", Network((64,), (Dense(128, "relu"), Dense(10))), "cross_entropy",
            Optimizer("sgd", 0.1, 0.9), batch=96, epochs=30, load=digits.flat, expected_accuracy=0.95,
        ),
        Workload(
            "digits-cnn",
            Network((1, 8, 8), (
                Conv(8, 3, padding=1), Pool(), Conv(16, 3, padding=1), Pool(), Flatten(), Dense(128, "relu"), Dense(10),
            )),
            "cross_entropy", Optimizer("adam", 5e-3), batch=160, epochs=30, load=digits.images, expected_accuracy=0.97,
        ),
        Workload(
            "mnist-mlp", Network((784,), (Dense(256, "relu"), Dense(10))), "cross_entropy", _ADAM,
            batch=128, epochs=2, load=mnist.flat, file=mnist.WANTED,
        ),
        Workload(
            "mnist-cnn",
            Network((1, 28, 28), (
                Conv(32, 5), Pool(), Conv(64, 5), Pool(), Flatten(), Dense(128, "relu"), Dense(10),
            )),
            "cross_entropy", _ADAM, batch=128, epochs=1, load=mnist.images, file=mnist.WANTED,
        ),
        Workload(
            "cifar-lenet",
            Network((3, 32, 32), (
                Conv(6, 5), Pool(), Conv(16, 5), Pool(), Flatten(), Dense(120, "relu"), Dense(84, "relu"), Dense(10),
            )),
            "cross_entropy", _ADAM, batch=128, epochs=2, load=cifar.images, file=cifar.WANTED,
        ),
        Workload(
            "recommender", Network((64,), (Dense(128, "relu"), Dense(1))), "binary_cross_entropy_with_logits",
            Optimizer("adam", 3e-3), batch=256, epochs=10, load=generated.preferences, expected_accuracy=0.85,
        ),
        Workload(
            "text-classifier", Network((128,), (Dense(64, "relu"), Dense(10))), "cross_entropy",
            Optimizer("adam", 3e-3), batch=256, epochs=10, load=newsgroups.bags,
        ),
    )
}  # fmt: skip


def workload(name: str) -> Workload:
    """The workload of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in WORKLOADS:
        raise ValueError(f"train: workload is {name!r}, wanted one of {', '.join(WORKLOADS)}")
    return WORKLOADS[name]
