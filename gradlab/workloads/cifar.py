"""CIFAR-10 from a folder of the user's: the python batches of Krizhevsky's archive."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.workloads.workload import Data, DataError

FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
WANTED = "cifar-10-batches-py with data_batch_1 to data_batch_5 and test_batch"
_WANTED_IN_FILE = "a pickle of b'data' uint8[M 3072] and b'labels', M numbers from 0 to 9"


def images(seed: int = 0, path: Path | None = None) -> Data:
    """Images x[M 3 32 32], centred and scaled by channel, and classes t[M].

    Raises:
        DataError: no such folder or file, a file that is no such batch.
    """
    if path is None:
        raise DataError(f"train: --data is missing, wanted the path of {WANTED}")
    if not path.is_dir():
        raise DataError(f"{path}: {'is a file' if path.exists() else 'no such folder'}, wanted {WANTED}")
    *train, test = (_read(path / name) for name in FILES)
    # Means and deviations of the training images, by channel: constants of the data set.
    mean = np.array([0.4914, 0.4822, 0.4465], np.float32)[:, None, None]
    deviation = np.array([0.2470, 0.2435, 0.2616], np.float32)[:, None, None]
    x, t = (np.concatenate([part[i] for part in train]) for i in (0, 1))
    scaled = [((pixels / np.float32(255)) - mean) / deviation for pixels in (x, test[0])]
    return Data(scaled[0], t, scaled[1], test[1], f"{len(t)} photographs of 32 x 32 pixels (CIFAR-10)")


class _Arrays(pickle.Unpickler):
    """Builds NumPy arrays and nothing else: a pickle can otherwise run any code."""

    ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        # The old name still imports, with a warning.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            batch = _Arrays(file, encoding="bytes").load()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}, wanted {WANTED}") from None
    except Exception as error:  # a broken pickle can raise anything
        raise DataError(f"{path}: broken or no such batch ({error}), wanted {_WANTED_IN_FILE}") from None
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= set(batch):
        found = f"the keys {', '.join(map(repr, batch))}" if isinstance(batch, dict) else f"a {type(batch).__name__}"
        raise DataError(f"{path}: holds {found}, wanted {_WANTED_IN_FILE}")
    pixels, labels = batch[b"data"], np.asarray(batch[b"labels"])
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        found = f"{pixels.dtype}{list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{path}: b'data' is {found}, wanted {_WANTED_IN_FILE}")
    if labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path}: b'labels' is {labels.dtype}{list(labels.shape)}, wanted {_WANTED_IN_FILE}")
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64)
