"""The base of the optimizers for torch: all parameters of one dtype and device are stepped in one launch."""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch

from gradlab.autodiff.arguments import shards_torch as shards
from gradlab.autodiff.arguments.errors import FLOATS, dtype_name, refuse
from gradlab.autodiff.arguments.tensors_torch import DEVICES
from gradlab.autodiff.optimizers.cached_step_torch import CachedStep, cached
from gradlab.kernels.optimizers.multi_tensor_triton import RowLayout, dense
from gradlab.kernels.runtime import memory_triton as memory
from gradlab.kernels.runtime.launch_triton import capturing

# Options of torch's optimizers that choose one of its implementations of the same step.
HOW = ("foreach", "fused", "capturable", "differentiable")


class Row(NamedTuple):
    """One parameter's step: a row of the kernel's table.

    Attributes:
        tensors: in the order of the layout's `arrays`.
        scalars: in the order of its `scalars`.
        on_device: for its `words`, in order: tensors on the device, or integers.
    """

    tensors: tuple[torch.Tensor, ...]
    scalars: list[float]
    on_device: tuple[Any, ...] = ()


class OneLaunch(torch.optim.Optimizer):
    """An optimizer of torch with another `step`; stands before torch's class among the bases.

    Of parameters that are sharded over a mesh (DTensors, as fully_shard makes them) each rank steps its part.

    A subclass names the options that it refuses, the layout of its kernel's table, and the row of each parameter.
    """

    # The layout of the kernel's table; its arrays begin with the parameter "p" and the gradient "g".
    _layout: RowLayout
    # Options of torch's that this optimizer does not have; checked each step, as a new param group may have them.
    _refused: tuple[str, ...] = ()
    # Own options, which are not in torch's state_dicts: copies and pickles of the optimizer include them.
    _own: tuple[str, ...] = ("max_norm",)

    max_norm: float | None = None
    # The norm of the last step's gradients with max_norm: a float64 scalar on their device.
    grad_norm: torch.Tensor | None = None
    # Parameters whose state is created in the current step.
    _created: set[torch.Tensor] = frozenset()  # type: ignore[assignment]
    # The last step, if it can be repeated.
    _cached: CachedStep | None = None
    # The current step's scalars, shared by parameters of a group with the same step count.
    _scalars: dict[tuple[Any, ...], list[float]]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        _outside_of_compile()
        return super().__new__(cls)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._own}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of this class or of torch's; flags that choose an implementation stay as they are here."""
        own = [{flag: group[flag] for flag in HOW if flag in group} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, flags in zip(self.param_groups, own, strict=True):
            group.update(flags)

    def _step_all(
        self,
        tensors: dict[str, list[torch.Tensor]],
        scalars: list[float],
        on_device: list[tuple],
        clip: torch.Tensor | None,
    ) -> None:
        """Launch the kernel over all parameters: for each array of the layout their tensors, then scalars and words."""
        raise NotImplementedError

    def _row(self, group: dict[str, Any], p: torch.Tensor, number: int) -> Row:
        """The row of the step of parameter `number`, counted over all groups."""
        raise NotImplementedError

    def _numbers(self, group: dict[str, Any], p: torch.Tensor) -> list[float]:
        """The scalars of the parameter's step, after a first one."""
        raise NotImplementedError

    def _dtype_of(self, key: str, p: torch.Tensor) -> torch.dtype:
        """The dtype of the parameter's state of that name."""
        return p.dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure returns.

        Raises:
            TypeError: a parameter or gradient that is sparse, complex, of another dtype than the lab's, or of a
                subclass without memory of its own; a DTensor beside a plain one.
            ValueError: a parameter on a device without kernels, a mesh or placements that differ, an option refused.
        """
        return self._stepped(closure)

    def _stepped(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Everything is checked before anything is written, so that an error leaves no half of a step.
        self._refuse_options()
        moving = self._moving()
        params, options = [p for _, _, p in moving], self._options()
        self._created, self._scalars = set(), {}
        last = self._cached
        columns = last.columns(params, self.state, options) if last is not None else None
        if last is not None and columns is not None:
            clip = self._clip(params)
            scalars = [x for _, group, p in moving for x in self._numbers(group, p)]
            self._step_all(dict(zip(self._layout.arrays, columns, strict=True)), scalars, last.on_device, clip)
            return loss
        for _, group, p in moving:
            self._refuse_row(group, p)
        clip = self._clip(params)
        batches: dict[tuple, list[Row]] = defaultdict(list)
        times: dict[int, int] = {}
        for number, group, p in moving:
            row = self._row(group, p, number)
            # A parameter that is listed twice takes its second step in a second launch.
            time = times[id(p)] = times.get(id(p), -1) + 1
            batches[time, p.device, *[t.dtype for t in row.tensors]].append(self._local(row, p))
        for batch in sorted(batches, key=lambda found: found[0]):
            self._launch(batches[batch], clip)
        self._cached = cached(next(iter(batches.values())), self.state, options) if len(batches) == 1 else None
        return loss

    def _options(self) -> tuple[Any, ...] | None:
        """What a step depends on besides tensors, learning rate and step count; None if any of it is on the device."""
        found: list[Any] = [getattr(self, name) for name in self._own]
        for group in self.param_groups:
            rate = group["lr"]
            found += [0 if isinstance(rate, float) else rate, len(group["params"])]
            found += [value for option, value in group.items() if option not in ("params", "lr")]
        amp = [getattr(self, name, None) for name in ("found_inf", "grad_scale")]
        return None if any(isinstance(t, torch.Tensor) for t in amp) else memory.signature(found)

    def _moving(self) -> list[tuple[int, dict[str, Any], torch.Tensor]]:
        """The parameters that have a gradient, with their groups, numbered over all."""
        every = [(group, p) for group in self.param_groups for p in group["params"]]
        return [(i, group, p) for i, (group, p) in enumerate(every) if p.grad is not None]

    def _refuse_options(self) -> None:
        """Raise a ValueError for an option that the hand-written step does not have."""
        name = type(self).__name__
        if capturing():
            # A replay would read the table of addresses from host memory that was reused since.
            refuse(name, "step", "captured into a CUDA graph", "to be called: its addresses come from the host")
        for group in self.param_groups:
            for option in self._refused:
                if group.get(option):
                    refuse(name, option, repr(group[option]), "False or None")
        want_norm(name, self.max_norm)

    def _refuse_row(self, group: dict[str, Any], p: torch.Tensor) -> None:
        """Raise a TypeError or ValueError for a parameter, gradient or state that the kernel cannot take."""
        assert p.grad is not None
        name, state = type(self).__name__, self.state.get(p, {})
        want_steppable(name, {"a parameter": p, "a gradient": p.grad})
        shards.want_beside(name, "a gradient", p.grad, p, exact=False)
        # The kernel reads by address: a tensor that is shorter or narrower than its parameter must not reach it.
        for what, t in (("a gradient", p.grad), *state.items()):
            if not isinstance(t, torch.Tensor) or what == "step":
                continue
            if t.shape != p.shape:
                refuse(name, f"shape of {what}", list(t.shape), f"{list(p.shape)} like its parameter")
            dtype = p.dtype if t is p.grad else self._dtype_of(what, p)
            if t.dtype != dtype:
                like = " like its parameter" if dtype == p.dtype else ""
                refuse(name, f"dtype of {what}", dtype_name(t), f"{str(dtype).removeprefix('torch.')}{like}", TypeError)
            if t.device != p.device:
                refuse(name, f"device of {what}", t.device, f"{p.device} like its parameter")
            if t is not p.grad:
                shards.want_parts(name, what, t)
                shards.want_beside(name, what, t, p)

    def _clip(self, params: list[torch.Tensor]) -> torch.Tensor | None:
        """The norm of all gradients and the factor that clips them, on the device; None without max_norm."""
        if self.max_norm is None or not params:
            return None
        want_one_device(type(self).__name__, params)
        # A parameter that is listed twice has one gradient.
        grads = [p.grad for p in dict.fromkeys(params) if p.grad is not None]
        scale = self._amp("grad_scale", params[0])
        clip = shards.global_norm(type(self).__name__, grads, self.max_norm, scale)
        self.grad_norm = clip[0]
        return clip

    def _amp(self, attribute: str, p: torch.Tensor) -> torch.Tensor | None:
        """An attribute that torch.amp.GradScaler sets on an optimizer for one step, on the parameter's device."""
        found = getattr(self, attribute, None)
        # Without any gradient the scaler's sum over devices is a plain 0.
        if not isinstance(found, torch.Tensor):
            return None
        return shards.full(found).to(p.device, torch.float32, non_blocking=True)

    def _local(self, row: Row, p: torch.Tensor) -> Row:
        """The row of this rank's part of the tensors."""
        if not shards.is_sharded(p):
            return row
        named = zip(self._layout.arrays, row.tensors, strict=True)
        return row._replace(tensors=tuple(shards.beside(t, p) if name == "g" else shards.local(t) for name, t in named))

    def _launch(self, rows: list[Row], clip: torch.Tensor | None) -> None:
        """Launch over tensors with the parameter's memory layout; others take part as copies, and are written back."""
        names = self._layout.arrays
        models = [dense(row.tensors[names.index("p")]) for row in rows]
        alike = [tuple(_with_layout(m, t) for t in row.tensors) for m, row in zip(models, rows, strict=True)]
        columns = {name: list(column) for name, column in zip(names, zip(*alike, strict=True), strict=True)}
        self._step_all(columns, [x for row in rows for x in row.scalars], [row.on_device for row in rows], clip)
        for row, used in zip(rows, alike, strict=True):
            for name, given, stepped in zip(names, row.tensors, used, strict=True):
                # The kernel does not write the gradient.
                if name != "g" and stepped is not given:
                    given.copy_(stepped)


@functools.cache
def nothing(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor without elements, for an array that a row does not have; cached."""
    return torch.empty(0, dtype=dtype, device=device)


def want_steppable(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse what is sparse, complex, of another dtype than the lab's, or on a device without kernels."""
    for what, t in tensors.items():
        shards.want_parts(name, what, t)
        if t.layout != torch.strided:
            refuse(name, f"layout of {what}", t.layout, "torch.strided", TypeError)
        if dtype_name(t) not in FLOATS:
            refuse(name, f"dtype of {what}", dtype_name(t), f"one of {', '.join(FLOATS)}", TypeError)
        if t.device.type not in DEVICES:
            refuse(name, f"device of {what}", t.device, " or ".join(DEVICES))


def want_one_device(name: str, tensors: Sequence[torch.Tensor]) -> None:
    """Refuse a norm over several devices: one would wait for the other."""
    for t in tensors:
        if t.device != tensors[0].device:
            came = f"one over {tensors[0].device} and {t.device}"
            refuse(name, "the norm", came, "one over gradients of a single device")


def want_norm(name: str, max_norm: Any) -> None:
    """Refuse a negative or NaN max_norm; None means no clipping."""
    if max_norm is not None and (
        isinstance(max_norm, bool) or not isinstance(max_norm, (int, float)) or math.isnan(max_norm) or max_norm < 0
    ):
        refuse(name, "max_norm", repr(max_norm), "a number from 0, or None")


def _with_layout(model: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """`t`, or a copy of it with the model's memory layout; a tensor without elements as it is."""
    if not t.numel():
        return t
    if t.stride() == model.stride():
        return t
    strides = zip(t.stride(), model.stride(), t.shape, strict=True)
    return t if all(a == b or n == 1 for a, b, n in strides) else torch.empty_like(model).copy_(t)


@functools.cache
def _outside_of_compile() -> None:
    """Keep torch.compile out of the step: inlined, it would recompile for each number and state that it reads.

    Done when the first optimizer is made, not at import: torch imports its compiler for it, which takes seconds, as it
    does for its own optimizers.
    """
    reason = "the optimizers of gradlab step in one launch over addresses, which the host looks up"
    OneLaunch._stepped = torch.compiler.disable(OneLaunch._stepped, reason=reason)  # type: ignore[method-assign]
