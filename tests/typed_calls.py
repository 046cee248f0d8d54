"""A user's calls as a type checker sees them; mypy (`make lint`) and pyright hold each `assert_type`, no test does."""

from typing import assert_type

import jax
import torch

import gradlab
import gradlab.jax
import gradlab.torch
from gradlab.autodiff.checker.report import Report

Tensors = tuple[torch.Tensor, torch.Tensor]
Arrays = tuple[jax.Array, jax.Array]


def on_torch(x: torch.Tensor, t: torch.Tensor, w: torch.Tensor, flag: bool) -> None:
    """Results that depend on an argument have the type that goes with it."""
    assert_type(gradlab.torch.relu(x), torch.Tensor)
    assert_type(gradlab.torch.max_pool2d(x, 2), torch.Tensor)
    assert_type(gradlab.torch.max_pool2d(x, 2, return_indices=True), Tensors)
    assert_type(gradlab.torch.cross_entropy(x, t), torch.Tensor)
    assert_type(gradlab.torch.cross_entropy(x, t, z_loss=1e-4, return_z_loss=True), Tensors)
    assert_type(gradlab.torch.linear_cross_entropy(x, w, t), torch.Tensor)
    assert_type(gradlab.torch.linear_cross_entropy(x, w, t, return_z_loss=True), Tensors)
    # A flag that is not known yet is accepted too.
    gradlab.torch.cross_entropy(x, t, return_z_loss=flag)
    module: torch.nn.Linear = gradlab.torch.Linear(4, 3)
    optimizer: torch.optim.Optimizer = gradlab.torch.Adam(module.parameters(), lr=1e-3)
    optimizer.step()


def on_jax(x: jax.Array, t: jax.Array, w: jax.Array) -> None:
    """The same on jax."""
    assert_type(gradlab.jax.relu(x), jax.Array)
    assert_type(gradlab.jax.max_pool2d(x, 2), jax.Array)
    assert_type(gradlab.jax.cross_entropy(x, t), jax.Array)
    assert_type(gradlab.jax.cross_entropy(x, t, return_z_loss=True), Arrays)
    assert_type(gradlab.jax.linear_cross_entropy(x, w, t, return_z_loss=True), Arrays)


def the_check(x: torch.Tensor) -> None:
    """A report is true or false."""
    report = gradlab.check(torch.sin, x, raises=False)
    assert_type(report, Report)
    assert_type(report.verdict, str)
