"""Real handwritten digits: scikit-learn's 1797 images of 8 x 8 pixels (UCI, Alpaydin and Kaynak 1998), no download."""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# A fifth of the images; what is left for training is 1440.
TEST = 357


class Digits(NamedTuple):
    """Images x[M 64] in [0, 1] as float32 and the digits t[M] they show as int64, to train on and to test on."""

    train_x: np.ndarray
    train_t: np.ndarray
    test_x: np.ndarray
    test_t: np.ndarray


def load(seed: int = 0) -> Digits:
    """The digits, shuffled and split by `seed`; both parts hold every digit in the same proportion."""
    images, shown = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32)
    t = shown.astype(np.int64)
    train_x, test_x, train_t, test_t = train_test_split(x, t, test_size=TEST, stratify=t, random_state=seed)
    return Digits(train_x, train_t, test_x, test_t)
