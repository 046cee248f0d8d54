"""Random tensors drawn on torch's default device."""

import torch

from gradlab.autodiff.frameworks.side_torch import SIDE


class Drawer:
    """float32 numbers that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator(SIDE.device()).manual_seed(seed)

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self._generator, device=SIDE.device())

    def uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        """From 0 to 1."""
        return torch.rand(shape, generator=self._generator, device=SIDE.device())
