"""A large function at a cut of its inputs, where all is held that does not depend on the size."""

from gradlab.autodiff.checker.core.comparison import Promises
from gradlab.autodiff.checker.core.derivative import Probe, gradients, joined
from gradlab.autodiff.checker.inputs.edges import cut


def light(p: Promises) -> Promises | None:
    """The promises of a function at a cut of its inputs; None where these are not large, or cannot be cut."""
    small = cut(p.probe.subject)
    if small is None:
        return None
    values = small.values(small.arrays)
    cotangents = [p.rng.standard_normal(y.shape) for y in values]
    grads = gradients(small, small.arrays, cotangents)
    probe = Probe(small, list(small.arrays), cotangents, grads, joined(values), noise=small.noise)
    probe.pairs, probe.joint = p.probe.pairs, p.probe.joint
    return Promises(probe, p.findings, p.note, p.rng, values)
