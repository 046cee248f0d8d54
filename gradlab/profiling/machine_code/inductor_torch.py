"""The Triton kernels that inductor writes for a function, found by compiling it for CPU tensors; none is run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from gradlab.kernels.private import private_torch
from gradlab.profiling.machine_code.call_torch import call
from gradlab.profiling.machine_code.found import PARSER, Found
from gradlab.profiling.machine_code.launches_torch import Source


def find(fn: Callable[..., Any], args: Sequence[Any], tile: Sequence[int]) -> list[Found]:
    """The kernels of `fn(*args)` and of its backward, where results have a gradient.

    Args:
        tile: M, N, K, stages and warps of products, which inductor would choose by measuring on a GPU.
    """
    noted: list[Found] = []
    with _noting(noted, tile), PARSER:
        result = torch.compile(fn)(*args)
        forward = len(noted)
        if result.requires_grad:
            torch.autograd.grad(result, [a for a in args if a.requires_grad], torch.ones_like(result))
    return noted[:forward] + [replace(f, direction="backward") for f in noted[forward:]]


@contextmanager
def _noting(noted: list[Found], tile: Sequence[int]) -> Iterator[None]:
    compiles, tiles = private_torch.inductor_compiles(), private_torch.inductor_tiles()
    M, N, K, stages, warps = tile

    def kernel(self: Any, name: str, text: str, *args: Any, **options: Any) -> _Noting:
        return _Noting(name, text, noted)

    def one(self: Any, *args: Any, **options: Any) -> Iterator[Any]:
        yield self.triton_config(stages, warps, BLOCK_M=M, BLOCK_N=N, BLOCK_K=K, GROUP_M=8)

    settings = {
        "cpu_backend": "triton",
        "max_autotune_gemm": True,
        "max_autotune_gemm_backends": "TRITON",
        "max_autotune_conv_backends": "TRITON",
        "fx_graph_cache": False,
        "compile_threads": 1,
    }
    before = compiles.triton, tiles.preprocess_mm_configs
    compiles.triton, tiles.preprocess_mm_configs = kernel, one
    try:
        with private_torch.inductor_settings().patch(settings):
            yield
    finally:
        compiles.triton, tiles.preprocess_mm_configs = before
        torch.compiler.reset()


class _Noting:
    """In place of inductor's launcher of one kernel: notes its launches."""

    def __init__(self, name: str, text: str, noted: list[Found]) -> None:
        self._noted = noted
        self._launcher = getattr(private_torch.inductor_sources().load(text), name)

    def run(self, *args: Any, **options: Any) -> None:
        own = self._launcher
        config = own.configs[0]
        meta = own.triton_meta
        constants = {**meta["constants"], **config.kwargs}
        names = [n for n in own.fn.arg_names if n not in constants]
        values = dict(zip(names, args, strict=False))
        grid = tuple(int(n) for n in args[len(names) :])
        if not grid:
            grid = private_torch.grid_expression(own.inductor_meta, config).eval_slow({**values, **constants})
        signature = {n: meta["signature"].get(n, "constexpr") for n in own.fn.arg_names}
        signature |= dict.fromkeys(constants, "constexpr")
        made = Source(
            fn=own.fn,
            signature=signature,
            constexprs={(own.fn.arg_names.index(n),): v for n, v in constants.items() if n in own.fn.arg_names},
            attrs=_aligned(own.fn.arg_names, values),
        )
        place = own.fn.fn.__code__
        words = {name: str(value) for name, value in {**own.inductor_meta.get("config_args", {}), **constants}.items()}
        self._noted.append(
            Found(
                own.fn.fn.__name__,
                1 + sum(f.kernel == own.fn.fn.__name__ for f in self._noted),
                "forward",
                grid,
                config.num_warps,
                config.num_stages,
                made,
                place.co_filename,
                place.co_firstlineno,
                words,
                call(signature, values, grid, ()),
            )
        )


def _aligned(names: Sequence[str], values: Mapping[str, Any]) -> dict[tuple[int], list[list[Any]]]:
    """What inductor declares for a GPU: addresses and integers that are multiples of 16."""
    numbers = {n: v.data_ptr() if isinstance(v, torch.Tensor) else v for n, v in values.items()}
    return {
        (names.index(n),): [["tt.divisibility", 16]] for n, v in numbers.items() if isinstance(v, int) and v % 16 == 0
    }
