"""Replaces the layers of an existing torch model by hand-written ones, and lists those that stay."""

from typing import NamedTuple

from torch import nn

from gradlab.autodiff.layers.modules_torch import HAND_WRITTEN, beyond


class Conversion(NamedTuple):
    """What `convert` did: the model, the names of the layers swapped, and of those left alone with the reason."""

    model: nn.Module
    swapped: list[str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} hand-written layers: {', '.join(self.swapped) or 'none'}"]
        lines += [f"left alone: {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def convert(model: nn.Module) -> Conversion:
    """Give every supported layer of `model` its hand-written forward, in place.

    A layer keeps its parameters, buffers, hooks and name: only its class changes, to a subclass of what it was. Layers
    of a class of your own are left alone, also when they derive from a supported one: their forward is theirs.

    Args:
        model: any module; a single layer too.

    Returns:
        The same model with what was swapped and what was left alone. A container whose layers are listed themselves,
        with no parameters of its own, is not.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model is a {type(model).__name__}, wanted a torch.nn.Module")
    swapped, left = [], {}
    for name, module in model.named_modules():
        name = name or type(module).__name__
        if type(module) in HAND_WRITTEN.values():
            continue
        hand = HAND_WRITTEN.get(type(module))
        limit = beyond(module) if hand else None
        if limit:
            left[name] = f"{type(module).__name__} with {limit[0]} {limit[1]}, hand-written only with {limit[2]!r}"
        elif hand:
            module.__class__ = hand
            swapped.append(name)
        elif not any(True for _ in module.children()) or list(module.parameters(recurse=False)):
            left[name] = f"{type(module).__name__} is not among the hand-written layers"
    return Conversion(model, swapped, left)
