"""How many classes backward of linear_cross_entropy takes at a time, and of how many forward keeps the logits.

Framework-free.
"""


def chunk(M: int, K: int, V: int) -> int:
    """Vc, the number of classes whose dx lies in memory at once in backward: at least 1024, about K, or 2^21 / M."""
    # An export of jax may leave the number of rows open: they may be many.
    by_rows = 2**21 // max(M, 1) if isinstance(M, int) else 1
    return min(V, max(1024, *(1 << max(n, 1).bit_length() - 1 for n in (K, by_rows))))


def kept(M: int, K: int, V: int, size: int, memory: int) -> int:
    """Vk, the classes from the first on whose logits, of `size` bytes, fit in `memory` bytes: all, or whole chunks.

    None of rows whose number an export leaves open.
    """
    if not memory or not isinstance(M, int):
        return 0
    if M * V * size <= memory:
        return V
    width = chunk(M, K, V)
    return memory // (M * width * size) * width
