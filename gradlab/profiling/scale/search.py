"""Every strategy at a number of devices, and the best mix of them."""

from collections.abc import Iterator

from gradlab.profiling.scale.devices import Machine
from gradlab.profiling.scale.layer import Network, Plan, tensor_plan, vocabulary_plan
from gradlab.profiling.scale.model import Prediction, predict
from gradlab.profiling.scale.strategies import Degrees

STRATEGIES = ("data", "sharded", "tensor", "vocabulary", "mix")


def strategy(name: str, network: Network, machine: Machine, devices: int, batch: int, dtype: str) -> Prediction:
    """A step by one strategy alone, or by the best mix."""
    if name == "mix":
        return best(network, machine, devices, batch, dtype)
    degrees, plan = {
        "data": (Degrees(data=devices), Plan()),
        "sharded": (Degrees(sharded=devices), Plan()),
        "tensor": (Degrees(tensor=devices), tensor_plan(network, devices)),
        "vocabulary": (Degrees(tensor=devices), vocabulary_plan(network, devices)),
    }[name]
    return predict(network, machine, degrees, batch, dtype, plan)


def best(network: Network, machine: Machine, devices: int, batch: int, dtype: str) -> Prediction:
    """The quickest step of all degrees whose memory suffices; where none does, the one that needs the least."""
    found = [
        one
        for degrees, plan in mixes(network, devices)
        if not (one := predict(network, machine, degrees, batch, dtype, plan)).refused
    ]
    if not found:
        return Prediction(Degrees(data=devices), refused=f"a batch of {batch}, and nothing else to split")
    fitting = [one for one in found if not machine.memory or one.memory <= machine.memory]
    if not fitting:
        return min(found, key=lambda one: one.memory)
    return min(fitting, key=lambda one: (one.seconds, one.memory))


def mixes(network: Network, devices: int) -> Iterator[tuple[Degrees, Plan]]:
    """All degrees of so many devices, with each plan of the tensor groups."""
    for tensor in _divisors(devices):
        plans = [tensor_plan(network, tensor)]
        if tensor > 1:
            plans.append(vocabulary_plan(network, tensor))
        for plan in plans:
            if not plan.refused:
                rest = devices // tensor
                yield from ((Degrees(rest // sharded, sharded, tensor), plan) for sharded in _divisors(rest))


def _divisors(n: int) -> Iterator[int]:
    return (k for k in range(1, n + 1) if n % k == 0)
