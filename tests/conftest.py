"""What every test shares: deterministic examples, and the device that torch's tests run on."""

import importlib.util

import pytest
from hypothesis import settings

settings.register_profile("lab", deadline=None, derandomize=True, max_examples=15, database=None)
settings.load_profile("lab")


@pytest.fixture(scope="session")
def device():
    """CUDA where there is one, so that the same tests run the kernels compiled."""
    torch = pytest.importorskip("torch")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _seeded():
    if importlib.util.find_spec("torch"):
        import torch

        torch.manual_seed(0)
