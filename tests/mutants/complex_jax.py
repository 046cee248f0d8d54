"""Wrong gradients of complex functions on jax, which gives the gradient of a real loss as d/dx - i d/dy."""

import jax

from tests.mutants.corpus import CheckSubject, Family, change
from tests.mutants.rule_of_jax import rule


def numbers(rng, size):
    return rng.normal(size=size) + 1j * rng.normal(size=size)


def plain_product(z, x):
    """The right function: complex z [N] times real x [N]."""
    return z * z * x


def product_pullback(dy, z, x):
    return dy * 2 * z * x, (dy * z * z).real


def build_product(fault):
    f = rule(plain_product, product_pullback, fault)

    def product(z, x):
        return f(z, x)

    return product


def plain_energy(z):
    """The right function, real and nowhere holomorphic."""
    return z.real**2 + 2 * z.imag**2


def energy_pullback(dy, z):
    return (dy * jax.lax.complex(2 * z.real, -4 * z.imag),)


def build_energy(fault):
    f = rule(plain_energy, energy_pullback, fault)

    def energy(z):
        return f(z)

    return energy


PRODUCT = Family("complex-product", "jax", build_product, lambda r, n: (numbers(r, n), r.normal(size=n)), plain_product)
ENERGY = Family("complex-energy", "jax", build_energy, lambda r, n: (numbers(r, n),), plain_energy)


def conjugated(grads, dy, args, ctx):
    return dy * (2 * args[0] * args[1]).conj(), grads[1]


def real_of_wrong(grads, dy, args, ctx):
    """One conjugate too many before the real part is taken."""
    return grads[0], (dy * (args[0] * args[0]).conj()).real


SUBJECTS: tuple[CheckSubject, ...] = (
    PRODUCT.right(),
    ENERGY.right(),
    PRODUCT.wrong("conjugated", "gross", "z", conjugated, "the derivative is conjugated, as torch has it"),
    PRODUCT.wrong("real-part", "gross", "z", change(0, lambda g: g.real + 0j), "dz has no imaginary part"),
    PRODUCT.wrong("real-input", "gross", "x", real_of_wrong, "dx of the derivative that is conjugated"),
    ENERGY.wrong("half", "gross", "z", change(0, lambda g: g / 2), "d/dz itself, without the factor of 2"),
    ENERGY.wrong(
        "conjugate", "gross", "z", change(0, jax.numpy.conj), "the conjugate of the gradient, as torch has it"
    ),
)
