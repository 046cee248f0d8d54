"""How many classes backward of linear_cross_entropy takes at a time. Framework-free."""


def chunk(M: int, K: int, V: int) -> int:
    """Vc, the number of classes whose dx lies in memory at once in backward: at least 1024, about K, or 2^21 / M."""
    # An export of jax may leave the number of rows open: they may be many.
    by_rows = 2**21 // max(M, 1) if isinstance(M, int) else 1
    return min(V, max(1024, *(1 << max(n, 1).bit_length() - 1 for n in (K, by_rows))))
