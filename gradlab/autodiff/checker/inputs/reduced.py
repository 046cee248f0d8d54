"""The comparison at reduced inputs, for everything that does not depend on the size."""

from gradlab.autodiff.checker.core.comparison import Comparison
from gradlab.autodiff.checker.core.probe import Probe, gradients, joined
from gradlab.autodiff.checker.inputs.edge_inputs import reduced_subject


def reduced(cmp: Comparison) -> Comparison | None:
    """The comparison of a function at reduced inputs; None if they are not large, or cannot be reduced."""
    small = reduced_subject(cmp.probe.subject)
    if small is None:
        return None
    values = small.values(small.arrays)
    cotangents = [cmp.rng.standard_normal(y.shape) for y in values]
    grads = gradients(small, small.arrays, cotangents)
    probe = Probe(small, list(small.arrays), cotangents, grads, joined(values), noise=small.noise)
    probe.pairs, probe.joint = cmp.probe.pairs, cmp.probe.joint
    return Comparison(probe, cmp.findings, cmp.note, cmp.rng, values)
