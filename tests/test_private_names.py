"""The private names of torch, Triton and jax: in one file each, all there, and doing what the lab takes them for."""

import ast
import importlib
import types
from pathlib import Path

import pytest

import gradlab

PACKAGE = Path(gradlab.__file__).parent
FOLDER = PACKAGE / "kernels" / "private"
FRAMEWORKS = ("torch", "triton", "jax")
# A folder of torch's that says private and is taken as public by everybody, torch's documentation too.
PUBLIC = ("torch.library._", "torch.utils.data._")


def private(name):
    """Whether a dotted name goes through something private of a framework."""
    first, *rest = name.split(".")
    hidden = any(part.startswith("_") and not part.startswith("__") for part in rest)
    return first in ("torch", "triton", "jax", "jaxlib", "tl", "pl") and hidden and not name.startswith(PUBLIC)


def found(source):
    """Every private name that a file imports or reaches through a framework's module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if private(a.name))
        elif isinstance(node, ast.ImportFrom):
            yield from (name for a in node.names if private(name := f"{node.module}.{a.name}"))
        elif isinstance(node, ast.Attribute) and private(name := dotted(node)):
            yield name


def dotted(node):
    """`torch._C._dispatch_keys` of an expression of names and attributes alone, else what no framework is called."""
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_private_names_stand_in_their_file():
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != FOLDER]
    strays = [f"{path.relative_to(PACKAGE)} uses {name}" for path in paths for name in set(found(path.read_text()))]
    assert not strays, "\n".join(["wanted in kernels/private:", *strays])


def test_the_rule_sees_a_breach():
    for source in ("import torch._dynamo", "from jax._src import core", "from triton.runtime.cache import _base32"):
        assert list(found(source)), source
    assert list(found("import torch\ndef f(t):\n    return torch._C._dispatch_keys(t)"))
    assert not list(found("import torch\ntorch.nn.Linear.__init__"))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_name_is_where_it_was(framework):
    """All that moved are named at once, where an import would stop at the first."""
    version = pytest.importorskip(framework).__version__
    moved = []
    for name in set(found((FOLDER / f"private_{framework}.py").read_text())):
        try:
            reached(name)
        except (ImportError, AttributeError):
            moved.append(name)
    assert not moved, f"{framework} {version} has no {', '.join(sorted(moved))}: kernels/private/private_{framework}.py"


def launched(x_ptr, n):
    """A kernel that does nothing."""


def reached(name):
    """The object of a dotted name: modules as far as they go, then attributes."""
    first, *rest = name.split(".")
    at, path = importlib.import_module(first), first
    for part in rest:
        path += f".{part}"
        if not hasattr(at, part) and hasattr(at, "__path__"):
            importlib.import_module(path)
        at = getattr(at, part)
    return at


def test_a_name_that_moved_is_seen():
    torch = pytest.importorskip("torch")
    assert reached("torch._C._dispatch_keys") is torch._C._dispatch_keys
    with pytest.raises(AttributeError):
        reached("torch._C._dispatch_locks")


def uses(framework):
    """What each public name of a file of private names is held to, by name."""
    if framework == "torch":
        import torch

        from gradlab.kernels.private import private_torch as p

        x, axis = torch.ones(2, 3), p.add_batch_dim(torch.ones(2, 3), 0, 1)

        class Mode(p.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                seen.append(p.dispatch_modes())
                return func(*args, **kwargs or {})

        class Backward(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                seen.append((p.autograd_node() is None, p.graph_task() == -1))
                return x * 1

            @staticmethod
            def backward(ctx, dy):
                seen.append((p.autograd_node() is None, p.graph_task() == -1))
                return dy

        def modes():
            seen.clear()
            with Mode():
                inside = p.dispatch_modes()
                x + 1
            return p.dispatch_modes(), inside, len(seen)

        def walk():
            seen.clear()
            Backward.apply(x.clone().requires_grad_()).sum().backward()
            return seen

        def mapped(tell):
            return torch.vmap(lambda t: (seen.append(tell(t)), t)[1])(x) is not None and seen[-1]

        def apart():
            def tell(t):
                with p.outside_transforms():
                    seen.append((p.transforms_active(), p.is_transformed(torch.ones(2))))
                seen.append((p.transforms_active(), p.is_transformed(torch.ones(2))))
                return t.sum()

            seen.clear()
            torch.func.grad(tell)(x)
            return seen

        def heard():
            class Mode(torch.overrides.TorchFunctionMode):
                def __torch_function__(self, func, types, args=(), kwargs=None):
                    seen.append(func)
                    return func(*args, **kwargs or {})

            seen.clear()
            with Mode():
                x + 1
                with p.without_function_modes():
                    x * 2
            return len(seen)

        def level():
            with torch.autograd.forward_ad.dual_level():
                return p.forward_ad_level()

        def added():
            tensors = [torch.zeros(2), torch.ones(1)]
            p.foreach_add_(tensors, 1)
            return [t.tolist() for t in tensors]

        def group():
            if not torch.distributed.is_available():
                return True
            torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
            try:
                one = torch.distributed.group.WORLD
                return p.process_group(one.group_name) is one is p.process_group(one)
            finally:
                torch.distributed.destroy_process_group()

        seen = []
        lazy = p.negative_view(x)
        return p, {
            "TorchDispatchMode": lambda: modes() == (0, 1, 1),
            "without_function_modes": lambda: heard() == 1,
            "dispatch_modes": lambda: modes() == (0, 1, 1),
            "pytree": lambda: (
                p.pytree.tree_leaves([1, {"a": (2, 3)}]) == [1, 2, 3]
                and p.pytree.tree_map_only(int, lambda n: -n, [1, "a"]) == [-1, "a"]
                and p.pytree.keystr(p.pytree.tree_flatten_with_path({"a": 1})[0][0][0]) == "['a']"
            ),
            "forward_ad_level": lambda: p.forward_ad_level() == -1 and level() == 0,
            "dispatch_keys": lambda: (
                bool(p.raw_repr(p.dispatch_keys(lazy)) & p.key_bits("Negative"))
                and not p.raw_repr(p.dispatch_keys(x)) & p.key_bits("Negative", "Conjugate", "Python")
            ),
            "raw_repr": lambda: p.raw_repr(p.dispatch_keys(x)) & p.key_bits("CPU") != 0,
            "key_bits": lambda: p.key_bits("CPU", "CUDA") == p.key_bits("CPU") | p.key_bits("CUDA"),
            "autograd_node": lambda: walk() == [(True, True), (False, False)],
            "graph_task": lambda: walk() == [(True, True), (False, False)],
            "transforms_active": lambda: mapped(lambda t: p.transforms_active()) and not p.transforms_active(),
            "innermost_transform": lambda: (
                mapped(lambda t: p.innermost_transform()) is not None and p.innermost_transform() is None
            ),
            "is_legacy_batched": lambda: p.is_legacy_batched(axis) and not p.is_legacy_batched(x),
            "run_while_tracing": lambda: (
                vars(p.run_while_tracing(lambda: None)) == vars(torch.compiler.assume_constant_result(lambda: None))
            ),
            "is_transformed": lambda: mapped(p.is_transformed) and not p.is_transformed(x),
            "unwrapped": lambda: mapped(lambda t: torch.equal(p.unwrapped(t), x)),
            "innermost": lambda: mapped(lambda t: p.innermost(t) is x) and p.innermost(x) is x,
            "outside_transforms": lambda: apart() == [(False, False), (True, True)],
            "is_batched": lambda: mapped(p.is_batched) and not p.is_batched(x),
            "remove_batch_dim": lambda: torch.equal(p.remove_batch_dim(axis, 1, 2, 0), x),
            "add_batch_dim": lambda: axis.shape == (3,),
            "negative_view": lambda: lazy.is_neg() and torch.equal(lazy.resolve_neg(), -x),
            "foreach_add_": lambda: added() == [[1.0, 1.0], [2.0]],
            "process_group": lambda: group(),
            "functorch_config": lambda: isinstance(p.functorch_config().donated_buffer, bool),
            "dynamo_utils": lambda: all(
                hasattr(p.dynamo_utils(), name)
                for name in ("counters", "get_compilation_metrics", "clear_compilation_metrics")
            ),
            "clear_inductor_caches": lambda: p.clear_inductor_caches() is None,
            "caching_autotuner": lambda: isinstance(p.caching_autotuner(), type),
            # Older versions of torch save no kernel of a CPU ahead of time, and have no such cache.
            "cpu_kernel_cache": lambda: (
                not hasattr(p.caching_autotuner(), "save_cpu_kernel") or hasattr(p.cpu_kernel_cache(), "set")
            ),
            "grid_expression": lambda: callable(p.grid_expression),
            "cpp_compiler": lambda: isinstance(p.cpp_compiler(), str),
            "inductor_compiles": lambda: callable(p.inductor_compiles().triton),
            "inductor_sources": lambda: p.inductor_sources().load("one = 1").one == 1,
            "inductor_tiles": lambda: callable(p.inductor_tiles().preprocess_mm_configs),
            "inductor_settings": lambda: isinstance(p.inductor_settings().cpu_backend, str),
        }
    if framework == "triton":
        import inspect

        import triton

        from gradlab.kernels.private import private_triton as p

        def made():
            asked = []
            own = types.SimpleNamespace(
                **{**vars(inspect), "getsourcelines": lambda f: (asked.append(f), inspect.getsourcelines(f))[1]}
            )
            return p.made_with(own, reached), asked

        def specialised():
            from triton.backends.compiler import GPUTarget
            from triton.compiler import make_backend

            backend = make_backend(GPUTarget("cuda", 90, 32))
            return p.specialised(triton.jit(launched), backend, (None, 7), {"num_warps": 2})

        def timed_by_no_one():
            from triton.runtime.autotuner import Autotuner

            with p.untuned():
                return Autotuner._bench(None, config=None)

        def launched_in_c():
            """Whether Triton's launcher of a kernel is made as it is read: the class, given what a compiled one has."""
            from triton.backends.nvidia import driver

            source = types.SimpleNamespace(signature={"x_ptr": "*fp32", "n": "i32", "BN": "constexpr"}, fn=None)
            sizes = dict.fromkeys(("global_scratch_size", "profile_scratch_size", "launch_pdl"), 0)
            sizes |= {"global_scratch_align": 1, "profile_scratch_align": 1, "launch_cooperative_grid": False}
            calls = []
            utils = types.SimpleNamespace(
                launch=lambda *args: calls.append(args),
                build_signature_metadata=lambda kinds: bytes(len(kinds)),
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(triton.runtime.driver, "_active", types.SimpleNamespace(utils=utils))
                for name in ("compile_module_from_src", "library_dirs"):
                    patch.setattr(driver, name, lambda *args, **options: utils, raising=False)
                patch.setattr(driver, "PyKernelArg", lambda nested_tuple, type: type, raising=False)
                run = driver.CudaLauncher(source, types.SimpleNamespace(**sizes, num_ctas=1))
            kernel = types.SimpleNamespace(src=source, run=run, function=5, packed_metadata=(4, 1, 0))
            found = p.c_launcher(kernel, types.SimpleNamespace(arg_names=list(source.signature)))
            found.call(2, 3, 4, 7, None, [8, 9] if len(found.passed) == 2 else [8, 9, None])
            (given,) = calls
            return given[:5] == (2, 3, 4, 7, 5) and (4, 1, 0) in given

        def allocated():
            from triton.runtime import _allocation

            def allocate(size, alignment, stream):
                return size

            before = _allocation._allocator.get()
            with p.scratch_allocator(allocate):
                inside = _allocation._allocator.get()
            return inside is allocate and _allocation._allocator.get() is before is not allocate

        def forgotten():
            jit = triton.jit(reached)
            jit.device_caches[0]  # a defaultdict, which makes the entry
            p.forget(jit)
            return len(jit.device_caches)

        return p, {
            "get_cache_invalidating_env_vars": lambda: isinstance(p.get_cache_invalidating_env_vars(), dict),
            "ir": lambda: hasattr(p.ir, "context") and hasattr(p.ir, "load_dialects"),
            "passes": lambda: hasattr(p.passes.common, "add_cse") and hasattr(p.passes.ttir, "add_combine"),
            "folder_of": lambda: p.folder_of("00ff") == "AD7Q",
            "made_with": lambda: isinstance(made()[0], triton.runtime.jit.JITFunction) and made()[1] == [reached],
            "forget": lambda: forgotten() == 0,
            "interpreter": lambda: hasattr(p.interpreter(), "FunctionRewriter"),
            "to_interpreted": lambda: p.to_interpreted(3).handle.data == 3,
            "patch_language": lambda: callable(p.interpreter()._patch_lang),
            "assembler": lambda: p.assembler(90).name.startswith("ptxas"),
            "c_launcher": launched_in_c,
            "scratch_allocator": allocated,
            "specialised": lambda: specialised()[2] == {"x_ptr": "constexpr", "n": "i32"},
            "untuned": lambda: timed_by_no_one() == [0.0, 0.0, 0.0],
        }
    import jax

    from gradlab.kernels.private import private_jax as p

    traced = jax.make_jaxpr(jax.nn.relu)(1.0).eqns[0].params
    own = next((v.jaxpr for v in traced.values() if hasattr(v, "jaxpr")), None)

    def dialect():
        with p.mlir().Context() as context:
            p.register_triton(context)
            text = "module { tt.func public @f() { tt.return } }"
            return "tt.func" in str(p.mlir().Module.parse(text))

    def unsaid():
        state = p.source_state()
        outside, state.context = state.context, p.no_source()
        try:
            return state.context is not outside
        finally:
            state.context = outside

    def other_rule():
        seen = []

        def rule(usual, ctx, *operands, **params):
            seen.append(ctx.primitive)
            return usual(ctx, *operands, **params)

        for _ in range(2):
            with p.lowered_on_cpus(jax.lax.sin_p, rule):
                jax.jit(lambda x: jax.lax.sin(x)).lower(1.0)
        jax.jit(lambda x: jax.lax.sin(x)).lower(1.0)
        return seen == [jax.lax.sin_p] * 2

    def on_host():
        def rule(usual, ctx, *operands, **params):
            return p.called_on_host(ctx, lambda x: (10 * x,), operands)

        with p.lowered_on_cpus(jax.lax.sin_p, rule):
            return jax.jit(lambda x: jax.lax.sin(x))(2.0) == 20

    def meshes():
        seen = []

        def rule(usual, ctx, *operands, **params):
            seen.extend(p.meshes_of_arguments(ctx))
            return usual(ctx, *operands, **params)

        mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        there = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
        with p.lowered_on_cpus(jax.lax.sin_p, rule):
            jax.jit(lambda x: jax.lax.sin(x), in_shardings=there).lower(jax.numpy.ones(1))
        return seen == [{"d": 1}]

    return p, {
        "error_checks": lambda: isinstance(p.error_checks, dict),
        "lowered_on_cpus": other_rule,
        "called_on_host": on_host,
        "pallas_of_any_size": lambda: p.pallas_of_any_size().__enter__() is None,
        "source_state": unsaid,
        "no_source": unsaid,
        "mlir": lambda: hasattr(p.mlir(), "Module"),
        "register_triton": dialect,
        "meshes_of_arguments": meshes,
        "is_jaxs_own": lambda: own is None or p.is_jaxs_own(own),
        "coordination": lambda: p.coordination() == (None, 0, 1),
    }


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_name_does_what_it_is_for(framework):
    pytest.importorskip(framework)
    module, held = uses(framework)
    source = ast.parse((FOLDER / f"private_{framework}.py").read_text()).body
    names = {a.asname for n in source if isinstance(n, ast.ImportFrom) for a in n.names if a.asname}
    names |= {n.name for n in source if isinstance(n, ast.FunctionDef)}
    names |= {t.id for n in source if isinstance(n, ast.Assign) for t in n.targets}
    assert set(held) == names
    failed = [name for name, right in held.items() if not right()]
    assert not failed, f"{module.__name__}: {failed}"
