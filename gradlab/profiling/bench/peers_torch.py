"""Peers on torch: Liger-Kernel and FlagGems, Triton kernels both. To add one, add an entry to PEERS."""

from gradlab.profiling.bench.peers import Peer
from gradlab.profiling.native import native_torch


def liger_cross_entropy(x, target, *, ignore_index=-100, reduction="mean"):
    """The negative log-likelihood of target[M] under softmax(x[M V]); Liger writes the gradient over the logits."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    if target.is_floating_point():
        raise TypeError("liger_cross_entropy: target holds probabilities, wanted classes")
    # On a copy, as Liger overwrites the logits and a second call needs them.
    return liger_cross_entropy(x.clone(), target, ignore_index=ignore_index, reduction=reduction)


def gems():
    """Within it torch's own functions run FlagGems' kernels."""
    import flag_gems

    return flag_gems.use_gems()


# What FlagGems has kernels for, forward and backward; it takes them under torch's own names.
GEMS = ("conv2d", "cross_entropy", "linear", "max_pool2d", "mse_loss", "relu", "sigmoid", "tanh")

PEERS = {
    name: [
        Peer(
            "FlagGems",
            "flag_gems",
            f"flag_gems: {native_torch.NATIVE[name].label}",
            native_torch.NATIVE[name].fn,
            ("cuda",),
            gems,
        )
    ]
    for name in GEMS
}
PEERS["cross_entropy"].append(
    Peer("Liger-Kernel", "liger_kernel", "liger_cross_entropy", liger_cross_entropy, ("cuda",))
)
