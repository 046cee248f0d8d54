"""What linear_cross_entropy's backwards share on Triton: empty gradients, and optional tensors with their strides."""

import torch


def empty_gradients(
    h: torch.Tensor,
    w: torch.Tensor,
    need_h: bool,
    need_w: bool,
    need_b: bool,
    by_columns: bool,
    wide: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New memory for dh, in `wide` where given, dw and db; without an element where it is not needed."""
    Z, K, V = w.shape
    dh = h.new_empty(h.shape if need_h else 0, dtype=wide)
    db = h.new_empty((Z, V) if need_b else 0)
    if not need_w:
        return dh, h.new_empty(0), db
    return dh, h.new_empty((Z, V, K)).mT if by_columns else h.new_empty((Z, K, V)), db


def present(like: torch.Tensor, a: torch.Tensor | None) -> tuple:
    """A tensor that may be absent, and its two strides; `like` stands for it then."""
    return (like, 0, 0) if a is None else (a, *a.stride())
