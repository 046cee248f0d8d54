"""Real handwritten digits: scikit-learn's 1797 images of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998), no download."""

from pathlib import Path

import numpy as np

from gradlab.workloads.workload import Data

# A fifth of the images; what is left for training is 1440.
TEST = 357


def flat(seed: int = 0, path: Path | None = None) -> Data:
    """Images x[M 64] in [0, 1] and digits t[M], split by `seed`; both parts hold every digit in the same proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, shown = load_digits(return_X_y=True)
    x = (pixels / 16).astype(np.float32)
    t = shown.astype(np.int64)
    train_x, test_x, train_t, test_t = train_test_split(x, t, test_size=TEST, stratify=t, random_state=seed)
    return Data(train_x, train_t, test_x, test_t, f"{len(train_x)} handwritten digits of 8 x 8 pixels")


def images(seed: int = 0, path: Path | None = None) -> Data:
    """The same as images x[M 1 8 8]."""
    data = flat(seed)
    return data._replace(train_x=data.train_x.reshape(-1, 1, 8, 8), test_x=data.test_x.reshape(-1, 1, 8, 8))
