"""Bags of words: ten of scikit-learn's 20 newsgroups where they are on disk, else generated topics."""

from pathlib import Path

import numpy as np

from gradlab.workloads import generated
from gradlab.workloads.workload import Data, DataError

WORDS, GROUPS = 128, 10


def bags(seed: int = 0, path: Path | None = None) -> Data:
    """Word counts x[M 128], each row of length 1, and topics t[M].

    `path` is scikit-learn's data folder, its own default when not given; nothing is downloaded.

    Raises:
        DataError: a folder that was named and does not hold them.
    """
    import sklearn.datasets

    folder = None if path is None else str(path)
    names = (
        "comp.graphics",
        "rec.autos",
        "rec.sport.hockey",
        "sci.crypt",
        "sci.electronics",
        "sci.med",
        "sci.space",
        "soc.religion.christian",
        "talk.politics.guns",
        "talk.politics.mideast",
    )
    try:
        parts = [
            sklearn.datasets.fetch_20newsgroups(
                data_home=folder,
                subset=subset,
                categories=names,
                remove=("headers", "footers", "quotes"),
                download_if_missing=False,
            )
            for subset in ("train", "test")
        ]
    except OSError as error:
        if path is not None:
            raise DataError(f"{path}: {error}, wanted scikit-learn's data folder with the 20 newsgroups") from None
        return generated.topics(seed)
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(max_features=WORDS, stop_words="english", sublinear_tf=True)
    train, test = words.fit_transform(parts[0].data).toarray(), words.transform(parts[1].data).toarray()
    t = [np.asarray(part.target, np.int64) for part in parts]
    source = f"{len(train)} posts to {GROUPS} newsgroups, {WORDS} words"
    return Data(train.astype(np.float32), t[0], test.astype(np.float32), t[1], source)
