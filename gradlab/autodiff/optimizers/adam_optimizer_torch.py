"""Adam and AdamW for torch: optimizers that step all parameters in one launch, and never wait for the device."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from gradlab.autodiff.arguments.errors import refuse, want_bool, want_choice
from gradlab.autodiff.arguments.shards_torch import part_of
from gradlab.autodiff.optimizers.optimizer_torch import OneLaunch, Row, nothing
from gradlab.kernels import adam_triton as kernels
from gradlab.kernels.adam import BETA1, BETA2, EPS, LR
from gradlab.kernels.common.rounding_triton import key
from gradlab.kernels.private.private_torch import foreach_add_

HALF = (torch.float16, torch.bfloat16)
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class Adam(OneLaunch, torch.optim.Adam):
    """Adam, all parameters of one dtype and device in one launch; `torch.optim.Adam` in every other respect.

        p' = p - lr / (1 - beta1^s) m' / (sqrt(v' / (1 - beta2^s)) + eps)

    gradlab/kernels/adam.py has all formulas. Param groups, hooks, schedulers and state_dicts are torch's own, which
    load both ways. Parameters may be DTensors, as fully_shard makes them; then their states are, too.
    torch.amp.GradScaler's scale and found_inf are read on the device, and a skipped step does not count in `step`.
    Gradients are not changed, neither by a scaler nor by max_norm.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay: as in torch.optim.Adam;
            run-time values: changing them does not recompile. A tensor lr on its parameter's device is read there.
        fused: this class is always fused; True keeps `step` on the device, as in torch.
        foreach, capturable, differentiable: refused unless false or None; `adam_step` is differentiable. Those of a
            loaded checkpoint are dropped, and its fused.
        max_norm: gradients are clipped to this norm over all parameters, as by torch.nn.utils.clip_grad_norm_;
            `grad_norm` is the last norm.
        master_weights: float16 and bfloat16 parameters have a float32 `master` in their state, which they round. A
            parameter that is changed outside of the optimizer becomes its master.
        state_dtype: dtype of the moments, torch.float32 or torch.bfloat16, the latter with stochastic rounding; None
            for the parameter's (float32 with a master).
        seed: for that rounding; the same seed gives the same bits for the same parameters at the same step.

    Raises:
        ValueError, TypeError: as torch.optim.Adam raises them, and for an option refused.
    """

    _layout = kernels.ROW
    _refused = ("foreach", "capturable", "differentiable")
    _own = ("max_norm", "master_weights", "state_dtype", "seed")
    _step_supports_amp_scaling = True

    def __init__(self, params: Any, lr: float | torch.Tensor = LR, betas: tuple[float, float] = (BETA1, BETA2),
                 eps: float = EPS, weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None,
                 maximize: bool = False, capturable: bool = False, differentiable: bool = False,
                 fused: bool | None = None, decoupled_weight_decay: bool = False, max_norm: float | None = None,
                 master_weights: bool = False, state_dtype: torch.dtype | None = None,
                 seed: int = 0) -> None:  # fmt: skip
        # Not super(): torch's AdamW, which may be next in the MRO, takes no decoupled_weight_decay.
        torch.optim.Adam.__init__(
            self,
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        self.max_norm, self.master_weights, self.state_dtype, self.seed = max_norm, master_weights, state_dtype, seed
        self._refuse_options()

    def _refuse_options(self) -> None:
        super()._refuse_options()
        name = type(self).__name__
        want_bool(name, "master_weights", self.master_weights)
        want_choice(name, "state_dtype", self.state_dtype, (None, torch.float32, torch.bfloat16))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            refuse(name, "seed", repr(self.seed), "an integer", TypeError)
        for group in self.param_groups:
            for option in ("betas", "eps", "weight_decay"):
                given = group[option]
                for t in given if isinstance(given, tuple | list) else (given,):
                    if isinstance(t, torch.Tensor) and t.device.type != "cpu":
                        refuse(name, f"device of {option}", t.device, "a number, or a tensor on the CPU")

    def _refuse_row(self, group: dict[str, Any], p: torch.Tensor) -> None:
        super()._refuse_row(group, p)
        lr = group["lr"]
        if isinstance(lr, torch.Tensor) and lr.device not in (p.device, torch.device("cpu")):
            refuse(type(self).__name__, "device of lr", lr.device, f"{p.device} like a parameter, or the CPU")

    def _dtype_of(self, key: str, p: torch.Tensor) -> torch.dtype:
        mastered = self.master_weights and p.dtype in HALF
        if key in MOMENTS:
            return self.state_dtype or (torch.float32 if mastered else p.dtype)
        return torch.float32 if key == "master" else p.dtype

    def _row(self, group: dict[str, Any], p: torch.Tensor, number: int) -> Row:
        """The row of `kernels.ROW`; learning rate and step are words of it where they are on the device."""
        assert p.grad is not None
        state, none = self.state[p], nothing(p.dtype, p.device)
        dtype = self._dtype_of("exp_avg", p)
        if not state:
            # On the host, as in torch: reading it must not synchronise.
            state["step"] = torch.tensor(0.0, dtype=torch.float64 if p.dtype == torch.float64 else torch.float32)
        for moment in MOMENTS if group["amsgrad"] else MOMENTS[:2]:
            if moment not in state:
                state[moment] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        if self.master_weights and p.dtype in HALF and "master" not in state:
            state["master"] = p.detach().to(torch.float32, memory_format=torch.preserve_format)
        step, rate = self._step_of(group, p, state), group["lr"]
        rate_on_host = not isinstance(rate, torch.Tensor) or rate.device != p.device
        scalars = self._scalars_of(group, math.inf if step.numel() else state["step"].item(), rate_on_host)
        master = state["master"] if self.master_weights and p.dtype in HALF else none
        largest = state["max_exp_avg_sq"] if group["amsgrad"] else nothing(dtype, p.device)
        tensors = kernels.ROW.arrays_of(p=p, g=p.grad, m=state["exp_avg"], v=state["exp_avg_sq"], x=largest, w=master)
        key = self._key(number, p) if self.state_dtype == torch.bfloat16 else 0
        return Row(tensors, scalars, kernels.ROW.words_of(lr=none if rate_on_host else rate, step=step, key=key))

    def _scalars_of(self, group: dict[str, Any], count: float, rate_on_host: bool) -> list[float]:
        """The kernel's scalars, computed once for all parameters of a group with the same step count."""
        scalars = self._scalars.get((id(group), count, rate_on_host))
        if scalars is None:
            scalars = self._scalars[id(group), count, rate_on_host] = kernels.scalars(
                lr=float(group["lr"]) if rate_on_host else 1.0,
                step=count,
                beta1=float(group["betas"][0]),
                beta2=float(group["betas"][1]),
                eps=float(group["eps"]),
                weight_decay=float(group["weight_decay"]),
                maximize=group["maximize"],
                decoupled=group["decoupled_weight_decay"],
            )
        return scalars

    def _numbers(self, group: dict[str, Any], p: torch.Tensor) -> list[float]:
        step = self.state[p]["step"]
        step += 1
        return self._scalars_of(group, step.item(), True)

    def _key(self, number: int, p: torch.Tensor) -> int:
        """The key for stochastic rounding: ranks that hold different parts of a parameter have different keys."""
        part = part_of(p)
        return key(key(self.seed, number), part) if part else key(self.seed, number)

    def _step_of(self, group: dict[str, Any], p: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        """The parameter's `step` if it is counted on the device; else it is counted here, and the result is empty."""
        step = state["step"]
        found = isinstance(getattr(self, "found_inf", None), torch.Tensor)
        if not (found or group["fused"] or self.state_dtype == torch.bfloat16 or step.device.type != "cpu"):
            step += 1
            return nothing(step.dtype, step.device)
        # Only the device knows whether the step is skipped: the count stays there, as reading it would synchronise.
        state["step"] = step.to(p.device, torch.float32, non_blocking=True)
        return state["step"]

    def _step_all(
        self,
        tensors: dict[str, list[torch.Tensor]],
        scalars: list[float],
        on_device: list[tuple],
        clip: torch.Tensor | None,
    ) -> None:
        words = {name: list(of) for name, of in zip(kernels.ROW.words, zip(*on_device, strict=True), strict=True)}
        p = tensors["p"][0]
        found = self._amp("found_inf", p)
        counted = [step for step in words["step"] if step.numel()]
        if counted:
            advance = 1.0 if found is None else torch.eq(found, 0).to(torch.float32)
            foreach_add_(counted, advance)
        kernels.adam_(
            tensors["p"],
            tensors["g"],
            tensors["m"],
            tensors["v"],
            tensors["x"] if _any(tensors["x"]) else [],
            scalars,
            masters=tensors["w"] if _any(tensors["w"]) else [],
            lrs=words["lr"] if _any(words["lr"]) else [],
            steps=words["step"] if counted else [],
            keys=words["key"] if self.state_dtype == torch.bfloat16 else [],
            grad_scale=self._amp("grad_scale", p),
            found_inf=found,
            clip=clip,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of this class or of torch.optim.Adam; moments get their dtype, masters stay float32."""
        given: dict[str, Any] = {}
        # torch rounds all state to its parameter's dtype: the given state is recorded before, and restored after.
        recorded = self.register_load_state_dict_pre_hook(lambda _, final: given.update(final))
        restored = self.register_load_state_dict_post_hook(lambda _: self._restore(given), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            recorded.remove()
            restored.remove()

    def _restore(self, given: dict[str, Any]) -> None:
        numbers = chain.from_iterable(group["params"] for group in given["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, p in zip(numbers, params, strict=True):
            state, was = self.state.get(p, {}), given["state"].get(number, {})
            for name in (*MOMENTS, "master"):
                if name in state:
                    state[name] = was[name].to(p.device, self._dtype_of(name, p))
            if not self.master_weights:
                state.pop("master", None)


class AdamW(Adam, torch.optim.AdamW):
    """Adam with decoupled weight decay: p' = p - lr weight_decay p - the step of `Adam`; as `torch.optim.AdamW`.

    Args:
        params, lr, betas, eps, amsgrad, maximize, foreach, capturable, differentiable, fused: as in `Adam`.
        weight_decay: 0.01 when not given.
        max_norm, master_weights, state_dtype, seed: as in `Adam`.
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = LR,
        betas: tuple[float, float] = (BETA1, BETA2),
        eps: float = EPS,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True, **options)


def _any(tensors: Sequence[torch.Tensor]) -> bool:
    return any(t.numel() for t in tensors)
