"""Kernels with planted faults: run under `gradlab.sanitize`, and the lines that the faults stand on."""

import inspect

import pytest

import gradlab


def cpu_driver():
    """The body of a fixture: Triton's active driver is the CPU's."""
    from triton.backends import Backend, backends
    from triton.runtime.driver import driver

    from gradlab.kernels.cpu.compiler import CPUBackend
    from gradlab.kernels.cpu.driver import CPUDriver

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends, "cpu", Backend(CPUBackend, CPUDriver))
        patch.setattr(driver, "_active", CPUDriver())
        yield


def faults(kernel, grid, *args, **constants):
    """The faults of one launch."""
    with gradlab.sanitize(raises=False) as report:
        kernel[grid](*args, **constants)
    assert report.launches == 1
    return report.faults


def line(kernel, mark="# fault"):
    """The line of a kernel's file that has a mark."""
    lines, first = inspect.getsourcelines(kernel.fn)
    (found,) = [first + i for i, text in enumerate(lines) if mark in text]
    return found


def only(found, kind, kernel, argument, **facts):
    """There is one fault, of a kind, on the marked line, of an argument; `facts` are attributes of it."""
    assert [(f.kind, f.line, f.argument) for f in found] == [(kind, line(kernel), argument)]
    for name, value in facts.items():
        assert getattr(found[0], name) == value, (name, getattr(found[0], name))
