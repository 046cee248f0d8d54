"""Networks given on the command line: an op at sizes, or the widths of linear layers."""

import re

from gradlab.kernels.spec import spec, specs
from gradlab.profiling.bench.sizes import sized
from gradlab.profiling.scale.layer import AXES, Layer, Network

# Rows of a step of a network given by its widths.
BATCH = 8192
LOSSES = ("cross_entropy", "linear_cross_entropy", "mse_loss")
# The options that leave optional inputs of a loss out.
PLAIN = {
    "cross_entropy": {"has_q": False, "has_a": False},
    "linear_cross_entropy": {"has_a": False},
    "binary_cross_entropy_with_logits": {"has_w": False, "has_p": False},
    "mse_loss": {},
}


def network(
    target: str, workloads: tuple[str, ...], ours: Network | None, sizes: str = "", loss: str | None = None
) -> Network:
    """What a target means.

    Args:
        workloads: the names of those that there are.
        ours: the network of the workload that the target is, if it is one.

    Raises:
        ValueError: neither a workload, an op nor widths, or an option that is none of the target's.
    """
    wide = [] if ours else widths(target)
    if sizes and (ours or wide):
        raise ValueError(f"scale: --sizes is {sizes!r}, wanted none beside {target}, which is no op")
    if loss is not None and not wide:
        raise ValueError(f"scale: --loss is {loss!r}, wanted none beside {target}, which is not given by widths")
    if ours:
        return ours
    if target not in specs() and not wide:
        every = ", ".join((*AXES, *workloads))
        raise ValueError(f"scale: target is {target!r}, wanted widths as 64-128-10 or one of {every}")
    return of_widths(target, loss or "cross_entropy") if wide else of_op(target, sizes)


def of_op(name: str, sizes: str = "") -> Network:
    """The op alone, forward and backward, at its largest case or at other sizes.

    Raises:
        ValueError: an op that is no layer, an unknown axis, no whole number.
    """
    if name not in AXES:
        raise ValueError(f"scale: op is {name!r}, wanted one with a batch: {', '.join(AXES)}")
    op = spec(name)
    case = max((*op.select("bench"), *op.select("bench gpu")), key=lambda c: op.at(c).flops()["forward"])
    if sizes:
        case = sized(op, case, sizes, "scale")
    rows = AXES[name].rows
    each = tuple((axis, 1 if axis == rows else n) for axis, n in case.sizes.items())
    words = " ".join(f"{axis}={n}" for axis, n in case.sizes.items())
    return Network(name, (Layer(name, name, each, tuple(case.static.items())),), case.sizes[rows], about=words)


def widths(text: str) -> list[int]:
    """The widths that "4096-(16384-4096)x32-50304" means: a part in brackets is repeated; empty for other text.

    Raises:
        ValueError: a width or a number of repetitions of 0.
    """
    if not re.fullmatch(r"\d+(-(\d+|\(\d+(-\d+)*\)x\d+))+", text):
        return []
    found: list[int] = []
    for single, group, often in re.findall(r"(\d+)(?![\d)x-]*\))|\(([\d-]+)\)x(\d+)", text):
        found += [int(single)] if single else [int(n) for n in group.split("-")] * int(often)
    if min(found) < 1 or len(found) < 2:
        raise ValueError(f"scale: widths are {text!r}, wanted at least two, each at least 1")
    return found


def of_widths(text: str, loss: str = "cross_entropy", optimizer: str = "adam") -> Network:
    """Linear layers of these widths, a relu in each but the last, and a loss.

    Raises:
        ValueError: a width of 0, or an unknown loss.
    """
    if loss not in LOSSES:
        raise ValueError(f"scale: loss is {loss!r}, wanted one of {', '.join(LOSSES)}")
    n = widths(text)
    last = len(n) - 1
    layers = [
        linear(f"linear{i}", n[i - 1], n[i], relu=i < last, leaf=i == 1)
        for i in range(1, last + (loss != "linear_cross_entropy"))
    ]
    if loss == "linear_cross_entropy":
        sizes = (("M", 1), ("K", n[-2]), ("V", n[-1]))
        layers.append(Layer("loss", loss, sizes, tuple(PLAIN[loss].items()), leaf=last == 1))
    else:
        layers.append(of_loss(loss, n[-1]))
    return Network(text, tuple(layers), BATCH, optimizer, f"linear layers {text}, relu, {loss}, {optimizer}")


def linear(name: str, K: int, N: int, relu: bool = False, leaf: bool = False) -> Layer:
    """A linear layer."""
    static = (("activation", "relu"),) if relu else ()
    return Layer(name, "linear", (("M", 1), ("K", K), ("N", N)), static, leaf)


def of_loss(name: str, width: int) -> Layer:
    """A loss of the last layer's results."""
    sizes = (("M", 1), ("V", width)) if name == "cross_entropy" else (("E", width),)
    return Layer("loss", name, sizes, tuple(PLAIN[name].items()))
