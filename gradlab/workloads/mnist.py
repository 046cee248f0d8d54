"""MNIST from a file of the user's: NumPy's archive mnist.npz as Keras distributes it."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from gradlab.workloads.workload import Data, DataError

WANTED = "mnist.npz with x_train[M 28 28], y_train[M], x_test[N 28 28], y_test[N] as uint8"
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def images(seed: int = 0, path: Path | None = None) -> Data:
    """Images x[M 1 28 28] in [0, 1] and digits t[M].

    Raises:
        DataError: no such file, not such an archive, arrays of another shape.
    """
    arrays = _read(path)
    x = {name: (arrays[name][:, None] / np.float32(255)).astype(np.float32) for name in ("x_train", "x_test")}
    t = {name: arrays[name].astype(np.int64) for name in ("y_train", "y_test")}
    source = f"{len(t['y_train'])} handwritten digits of 28 x 28 pixels (MNIST)"
    return Data(x["x_train"], t["y_train"], x["x_test"], t["y_test"], source)


def flat(seed: int = 0, path: Path | None = None) -> Data:
    """The same as rows x[M 784]."""
    data = images(seed, path)
    return data._replace(train_x=data.train_x.reshape(-1, 784), test_x=data.test_x.reshape(-1, 784))


def _read(path: Path | None) -> dict[str, np.ndarray]:
    if path is None:
        raise DataError(f"train: --data is missing, wanted the path of {WANTED}")
    try:
        # A pickled array could run code: none is read.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            # A .npy file is one array, without a name.
            arrays = {"one array": archive} if isinstance(archive, np.ndarray) else dict(archive)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}, wanted {WANTED}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: broken or truncated ({error}), wanted {WANTED}") from None
    if any(name not in arrays for name in _ARRAYS):
        raise DataError(f"{path}: holds {', '.join(arrays) or 'nothing'}, wanted {WANTED}")
    for name in _ARRAYS:
        array = arrays[name]
        pixels = name.startswith("x")
        other = arrays[name.replace("x", "y") if pixels else name.replace("y", "x")]
        fits = array.ndim == (3 if pixels else 1) and (not pixels or array.shape[1:] == (28, 28))
        if not fits or array.dtype != np.uint8 or len(array) == 0 or len(array) != len(other):
            raise DataError(f"{path}: {name} is {array.dtype}{list(array.shape)}, wanted {WANTED}")
        if not pixels and array.max() > 9:
            raise DataError(f"{path}: {name} holds {array.max()}, wanted digits 0 to 9")
    return arrays
