"""Networks as data, the catalogue, batches, generated data, and data files that are wrong in every way."""

import pickle

import numpy as np
import pytest

from gradlab.workloads import cifar, digits, generated, mnist, newsgroups
from gradlab.workloads.catalogue import WORKLOADS, workload
from gradlab.workloads.network import Conv, Dense, Flatten, Network, Pool
from gradlab.workloads.workload import DataError, batches, score, shown, steps


def test_shapes_and_names_are_worked_out():
    assert WORKLOADS["mnist-cnn"].network.parameters() == {
        "conv1.weight": (32, 1, 5, 5),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 5, 5),
        "conv2.bias": (64,),
        "linear1.weight": (128, 64 * 4 * 4),
        "linear1.bias": (128,),
        "linear2.weight": (10, 128),
        "linear2.bias": (10,),
    }
    lenet = WORKLOADS["cifar-lenet"].network
    assert [p.after for p in lenet.placed() if isinstance(p.layer, Pool)] == [(6, 14, 14), (16, 5, 5)]
    assert lenet.parameters()["linear1.weight"] == (120, 400)
    assert str(WORKLOADS["digits-mlp"].network) == "64-128-10"
    assert str(WORKLOADS["digits-cnn"].network) == "1x8x8, conv 8@3x3, max-pool 2, conv 16@3x3, max-pool 2, 128, 10"


@pytest.mark.parametrize(
    ("shape", "layers", "message"),
    [
        ((1, 4, 4), (Dense(3),), r"network: input of a linear layer is \[1, 4, 4\], wanted \[K\]: flatten it first"),
        ((4,), (Conv(3, 3),), r"network: input of Conv.* is \[4\], wanted \[C H W\]"),
        ((1, 4, 4), (Pool(), Pool(), Pool()), r"network: input of Pool.* is \[1, 1, 1\], wanted"),
        ((1, 2, 2), (Conv(3, 5),), r"network: input of Conv.* is \[1, 2, 2\], wanted"),
    ],
)
def test_layers_that_do_not_fit(shape, layers, message):
    with pytest.raises(ValueError, match=message):
        Network(shape, layers).parameters()


def test_first_weights():
    network = Network((64,), (Dense(128, "relu"), Flatten(), Dense(10)))
    start = network.initial(1)
    assert {name: w.dtype for name, w in start.items()} == dict.fromkeys(network.parameters(), np.dtype(np.float32))
    # Sample deviations of 8192 and 1280 normal values: within five standard errors.
    assert start["linear1.weight"].std() == pytest.approx(np.sqrt(2 / 64), rel=5 / np.sqrt(2 * 8192))
    assert start["linear2.weight"].std() == pytest.approx(np.sqrt(1 / 128), rel=5 / np.sqrt(2 * 1280))
    assert not start["linear1.bias"].any()
    assert all((w == network.initial(1)[name]).all() for name, w in start.items())
    assert (start["linear1.weight"] != network.initial(2)["linear1.weight"]).any()


def test_the_catalogue_is_whole():
    assert list(WORKLOADS) == [
        "linear-regression",
        "sigmoid-net",
        "digits-mlp",
        "digits-cnn",
        "mnist-mlp",
        "mnist-cnn",
        "cifar-lenet",
        "recommender",
        "text-classifier",
    ]
    with pytest.raises(
        ValueError, match=r"train: workload is 'imagenet', wanted one of linear-regression, .*text-classifier"
    ):
        workload("imagenet")
    for one in WORKLOADS.values():
        assert one.network.initial().keys() == one.network.parameters().keys()
        outputs = [*one.network.placed()][-1].after
        assert outputs == ((10,) if one.loss == "cross_entropy" else (1,))


def test_batches():
    data = generated.preferences()
    given = list(batches(data, 96, 2, seed=5))
    assert len(given) == steps(data, 96, 2) == 2 * (16384 // 96)
    seen = np.concatenate([x for x, _ in given[: len(given) // 2]])
    assert len(np.unique(seen, axis=0)) == 16384 // 96 * 96
    assert (given[0][0] != given[16384 // 96][0]).any()
    again = batches(data, 96, 2, seed=5, done=50)
    assert all((a == b).all() for (a, _), (b, _) in zip(given[50:], again, strict=True))
    assert (next(batches(data, 96, 1, seed=6))[0] != given[0][0]).any()
    with pytest.raises(ValueError, match="train: batch-size is 20000, wanted at most the 16384 training rows"):
        steps(data, 20000, 1)


def test_scores():
    t = np.array([0, 1, 1, 0])
    assert score(WORKLOADS["digits-mlp"], np.eye(2)[[0, 1, 0, 0]], t) == 0.75
    assert score(WORKLOADS["recommender"], np.array([[-1.0], [2], [-3], [4]]), t[:, None]) == 0.5
    assert score(WORKLOADS["linear-regression"], np.array([[1.0], [3]]), np.array([[1.0], [1]])) == np.sqrt(2)
    assert (shown(WORKLOADS["recommender"], 0.5), shown(WORKLOADS["linear-regression"], 0.0123)) == (
        "50.00%",
        "rmse 0.012",
    )


@pytest.mark.parametrize("load", [generated.line, generated.sigmoid_teacher, generated.preferences, generated.topics])
def test_generated_data_is_the_same_for_a_seed(load):
    one, other = load(3), load(3)
    assert all((a == b).all() for a, b in zip(one[:4], other[:4], strict=True))
    assert one.train_x.dtype == np.float32
    assert load is generated.line or (load(4).train_x != one.train_x).any()


def test_preferences_are_not_linear():
    """No plane through the traits tells likes from dislikes; what does is there to be learnt."""
    data = generated.preferences()
    plane, *_ = np.linalg.lstsq(data.train_x, 2 * data.train_t - 1, rcond=None)
    right = ((data.test_x @ plane > 0) == (data.test_t > 0.5)).mean()
    assert right < 0.6


def test_digits():
    pytest.importorskip("sklearn")
    data = digits.images(3)
    assert (data.train_x.shape, data.test_x.shape) == ((1440, 1, 8, 8), (357, 1, 8, 8))
    assert (data.train_x.dtype, data.train_x.min(), data.train_x.max()) == (np.float32, 0, 1)
    # Stratified: each digit's share of the test images is its share of all of them, within one image.
    shown = np.bincount(np.concatenate([data.train_t, data.test_t]))
    assert abs(np.bincount(data.test_t) - shown * 357 / 1797).max() <= 1
    assert (data.test_x != digits.images(4).test_x).any()
    assert (digits.flat(3).test_x.reshape(-1, 1, 8, 8) == data.test_x).all()


def test_text_without_the_newsgroups(tmp_path):
    pytest.importorskip("sklearn")
    data = newsgroups.bags(2)
    assert data.train_x.shape[1] == 128
    with pytest.raises(DataError, match=f"{tmp_path}: .*wanted scikit-learn's data folder with the 20 newsgroups"):
        newsgroups.bags(2, tmp_path)


def archive(path, **changed):
    """A small mnist.npz."""
    rng = np.random.default_rng(0)
    arrays = {f"x_{p}": rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for p, n in (("train", 30), ("test", 7))}
    arrays |= {f"y_{p}": rng.integers(0, 10, n, dtype=np.uint8) for p, n in (("train", 30), ("test", 7))}
    arrays |= changed
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return path


def test_mnist_is_read(tmp_path):
    path = archive(tmp_path / "mnist.npz")
    data = mnist.images(0, path)
    assert (data.train_x.shape, data.test_x.shape, data.train_t.dtype) == ((30, 1, 28, 28), (7, 1, 28, 28), np.int64)
    with np.load(path) as arrays:
        np.testing.assert_allclose(data.train_x[:, 0] * 255, arrays["x_train"], rtol=1e-6)
        assert (data.test_t == arrays["y_test"]).all()
    assert mnist.flat(0, path).train_x.shape == (30, 784)


WANTED = "wanted mnist.npz with x_train"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "absent.npz", "No such file or directory, " + WANTED),
        (lambda p: p, "Is a directory, " + WANTED),
        (
            lambda p: (p / "t.npz").write_bytes(archive(p / "m.npz").read_bytes()[:5000]) and p / "t.npz",
            "broken or truncated",
        ),
        (lambda p: (p / "t.npz").write_bytes(b"") or p / "t.npz", "broken or truncated"),
        (lambda p: (p / "t.npz").write_text("hello") and p / "t.npz", "broken or truncated"),
        (lambda p: np.save(p / "t.npy", np.ones(3)) or p / "t.npy", "holds one array, " + WANTED),
        (lambda p: archive(p / "m.npz", x_test=None), r"holds x_train, y_train, y_test, " + WANTED),
        (
            lambda p: archive(p / "m.npz", x_test=np.zeros((7, 8, 8), np.uint8)),
            r"x_test is uint8\[7, 8, 8\], " + WANTED,
        ),
        (
            lambda p: archive(p / "m.npz", x_train=np.zeros((30, 28, 28))),
            r"x_train is float64\[30, 28, 28\], " + WANTED,
        ),
        (lambda p: archive(p / "m.npz", y_train=np.zeros(29, np.uint8)), r"x_train is uint8\[30, 28, 28\], " + WANTED),
        (lambda p: archive(p / "m.npz", y_test=np.full(7, 11, np.uint8)), "y_test holds 11, wanted digits 0 to 9"),
        (lambda p: archive(p / "m.npz", y_test=np.array([{}] * 7)), "broken or truncated"),
    ],
)
def test_mnist_that_is_wrong_is_one_line(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        mnist.images(0, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def cifar_folder(folder, spoil=None, **changed):
    """Six small batches as Krizhevsky wrote them: Python 2's protocol, bytes for keys."""
    rng = np.random.default_rng(0)
    for name in cifar.FILES:
        batch = {b"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), b"labels": rng.integers(0, 10, 20).tolist()}
        if name == spoil:
            batch |= {key.encode(): value for key, value in changed.items()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def test_cifar_is_read(tmp_path):
    data = cifar.images(0, cifar_folder(tmp_path))
    assert (data.train_x.shape, data.test_x.shape, data.train_t.dtype) == ((100, 3, 32, 32), (20, 3, 32, 32), np.int64)
    # Red comes first, row by row.
    first = pickle.loads((tmp_path / "data_batch_1").read_bytes(), encoding="bytes")[b"data"][0, 32]
    assert data.train_x[0, 0, 1, 0] == pytest.approx((first / 255 - 0.4914) / 0.2470, rel=1e-5)


class Evil:
    def __reduce__(self):
        return print, ("a pickle ran code",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "train: --data is missing, wanted the path of cifar-10-batches-py"),
        (lambda p: p / "absent", "no such folder, wanted cifar-10-batches-py"),
        (lambda p: (p / "f").write_text("") or p / "f", "is a file, wanted cifar-10-batches-py"),
        (lambda p: p, "data_batch_1: No such file or directory"),
        (lambda p: (cifar_folder(p) / "data_batch_3").write_bytes(b"\x80\x02}") and p, "data_batch_3: broken or no such batch"),
        (lambda p: (cifar_folder(p) / "test_batch").write_bytes(pickle.dumps([1])) and p, "test_batch: holds a list, wanted a pickle"),
        (lambda p: (cifar_folder(p) / "test_batch").write_bytes(pickle.dumps({})) and p, "test_batch: holds the keys , wanted a pickle"),
        (lambda p: cifar_folder(p, "test_batch", data=np.zeros((20, 3072))), r"test_batch: b'data' is float64\[20, 3072\]"),
        (lambda p: cifar_folder(p, "test_batch", data=np.zeros((20, 3), np.uint8)), r"test_batch: b'data' is uint8\[20, 3\]"),
        (lambda p: cifar_folder(p, "test_batch", labels=[1] * 19), r"test_batch: b'labels' is int64\[19\]"),
        (lambda p: cifar_folder(p, "test_batch", labels=[10] * 20), r"test_batch: b'labels' is int64\[20\]"),
        (lambda p: (cifar_folder(p) / "test_batch").write_bytes(pickle.dumps(Evil())) and p, "it asks for builtins.print"),
    ],
)  # fmt: skip
def test_cifar_that_is_wrong_is_one_line(tmp_path, capsys, make, message):
    with pytest.raises(DataError, match=message) as caught:
        cifar.images(0, make(tmp_path))
    assert "\n" not in str(caught.value)
    assert "ran code" not in capsys.readouterr().out
