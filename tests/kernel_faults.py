"""A fault planted in the text of a Triton kernel, for as long as a test lasts."""

import functools
import inspect
import types

from triton.runtime.jit import JITFunction

from gradlab.kernels.runtime import interpret_triton


def plant(monkeypatch, folder, module, name, *faults, users=()):
    """Replace the kernel `name` of a module by one whose text has `old` turned into `new`, for each fault (old, new).

    Every other kernel of the module is made anew beside it: compiled and interpreted kernels remember what they call.
    So are those of `users`, modules that have imported kernels of the module.
    """
    monkeypatch.setattr(
        interpret_triton, "_interpreted_form", functools.cache(interpret_triton._interpreted_form.__wrapped__)
    )
    made = {}
    for kernel, jit in list(vars(module).items()):
        if isinstance(jit, JITFunction):
            text = inspect.getsource(jit.fn)
            for old, new in faults if kernel == name else ():
                assert old in text, f"{name} has no {old!r}"
                text = text.replace(old, new)
            made[jit] = _made(text, folder / f"{kernel}.py", module, jit.fn)
            monkeypatch.setattr(module, kernel, made[jit])
    for user in users:
        for kernel, jit in list(vars(user).items()):
            if isinstance(jit, JITFunction):
                own = jit.fn.__module__ == user.__name__
                text = inspect.getsource(jit.fn)
                again = _made(text, folder / f"{kernel}.py", user, jit.fn) if own else made.get(jit, jit)
                monkeypatch.setattr(user, kernel, again)


def _made(text, file, module, fn):
    """The kernel of that text, with the module's names."""
    text = text[text.index("def ") :]
    file.write_text(text)
    code = compile(text, str(file), "exec").co_consts
    (body,) = (c for c in code if inspect.iscode(c))
    made = types.FunctionType(body, vars(module), fn.__name__, fn.__defaults__)
    made.__module__, made.__annotations__ = fn.__module__, fn.__annotations__
    return JITFunction(made)
