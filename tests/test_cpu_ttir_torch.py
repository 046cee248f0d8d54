"""Printed Triton IR read into a tree: every construct, names, constants, places in this file."""

import inspect
import math
import time
from pathlib import Path

import pytest
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.language.extra import libdevice

from gradlab.kernels.cpu.ttir import Type
from gradlab.kernels.cpu.ttir_parse import parse

F16 = Type((16,), "f32")


def printed(function, passes=True, capability=80, debug=False, **signature):
    """The IR that Triton's front end makes of a kernel, as text."""
    target = GPUTarget("cuda", capability, 32)
    backend = CUDABackend(target)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options({"debug": debug, "enable_fp_fusion": True})
    source = ASTSource(function, signature, {})
    module = source.make_ir(
        target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context
    )
    if passes:
        backend.make_ttir(module, {}, options, capability)
    text = module.str()
    del module, context
    return text


def tree(function, **options):
    return parse(printed(function, **options))


def body(*lines, arguments="%x: f32, %p: !tt.ptr<f32>, %n: i32", functions=""):
    """The kernel of a module written by hand."""
    return parse(
        "\n".join(["module {", f"tt.func public @k({arguments}) {{", *lines, "tt.return", "}", functions, "}"])
    )


def one(line, **options):
    """The operation of one line."""
    return body(line, **options).kernel.blocks[0].operations[0]


def named(module, name):
    return [
        operation for function in module.functions.values() for operation in function.walk() if operation.name == name
    ]


def line_of(marker):
    """The line of this file that ends in a comment of one word."""
    (line,) = [i for i, text in enumerate(Path(__file__).read_text().split("\n"), 1) if text.endswith(f"  # {marker}")]
    return line


def check_names(module):
    """No name is defined twice, and each use has the type of the one definition."""
    for function in module.functions.values():
        known = dict(function.arguments)
        defined = list(known)
        for operation in function.walk():
            defined += operation.results
            known.update(zip(operation.results, operation.result_types, strict=True))
            for region in operation.regions:
                for block in region:
                    assert block.parent is operation
                    defined += [name for name, _ in block.arguments]
                    known.update(block.arguments)
        for block in function.blocks[1:]:
            defined += [name for name, _ in block.arguments]
            known.update(block.arguments)
        assert len(defined) == len(set(defined))
        for operation in function.walk():
            assert operation in operation.block.operations
            assert [known[name] for name in operation.operands] == operation.operand_types


@triton.jit
def memory_kernel(x, y, n):
    i = tl.program_id(1) * 16 + tl.arange(0, 16)
    a = tl.load(x + i, mask=i < n, other=-2.0, cache_modifier=".cg", eviction_policy="evict_first", volatile=True)
    tl.store(y + i, a, mask=i < n)  # store
    tl.store(y, tl.sum(a))  # reduction


def test_memory():
    module = tree(memory_kernel, x="*fp32", y="*fp32", n="i32")
    check_names(module)
    kernel = module.kernel
    assert (kernel.name, kernel.public, kernel.result_types) == ("memory_kernel", True, [])
    assert kernel.arguments == [("%x", Type((), "*f32")), ("%y", Type((), "*f32")), ("%n", Type((), "i32"))]
    assert named(module, "tt.get_program_id")[0].attributes == {"axis": 1}
    assert named(module, "tt.make_range")[0].attributes == {"start": 0, "end": 16}
    (compare,) = named(module, "arith.cmpi")
    assert (compare.attributes, compare.type) == ({"predicate": "slt"}, Type((16,), "i1"))
    (load,) = named(module, "tt.load")
    assert load.operand_types == [Type((16,), "*f32"), Type((16,), "i1"), F16]
    assert (load.type, load.type.elements) == (F16, 16)
    assert load.attributes == {"cache_modifier": "cg", "eviction_policy": "evict_first", "volatile": True}
    store, scalar = named(module, "tt.store")
    assert store.operands == [store.operands[0], load.result, compare.result]
    (reduction,) = named(module, "tt.reduce")
    assert scalar.operands == ["%y", reduction.result]
    assert (reduction.operand_types, reduction.type, reduction.attributes) == ([F16], Type((), "f32"), {"axis": 0})
    ((combine,),) = reduction.regions
    assert [operation.name for operation in combine.operations] == ["arith.addf", "tt.reduce.return"]
    assert combine.operations[0].operands == [name for name, _ in combine.arguments]


def test_places_are_of_this_file():
    module = tree(memory_kernel, x="*fp32", y="*fp32", n="i32")
    place = module.where(named(module, "tt.store")[0].location)
    assert (Path(place.file).name, place.line) == (Path(__file__).name, line_of("store"))
    assert place.column > 0
    # tl.sum is of Triton's own library, and so is what it combines with: the place is the call.
    for operation in named(module, "tt.reduce") + named(module, "arith.addf"):
        assert module.where(operation.location).line == line_of("reduction")
    assert module.where(module.kernel.location).line == inspect.getsourcelines(memory_kernel.fn)[1] + 1
    assert module.where(module.kernel.argument_locations[0]).file == place.file


@triton.jit
def inner(a):
    return a * 2.0  # inner


@triton.jit
def middle(a):
    return inner(a) + 1.0  # middle


@triton.jit
def chain_kernel(x):
    tl.store(x, middle(tl.load(x)))  # outer


def test_a_chain_of_calls():
    module = tree(chain_kernel, x="*fp32")
    place = module.where(named(module, "arith.mulf")[0].location)
    assert place.line == line_of("inner")
    assert [line for _, line in place.callers] == [line_of("middle"), line_of("outer")]


def test_locations():
    table = {"#loc": '"a b.py":1:2', "#loc1": "callsite(#loc at #loc2)", "#loc2": '"v"("c.py":3:4)', "#loc3": "unknown"}
    module = body("tt.store %p, %x : !tt.ptr<f32> loc(#loc1)")
    module.locations = table
    assert str(module.where("#loc1")) == "a b.py:1"
    assert module.where("#loc1").callers == (("c.py", 3),)
    assert module.where("fused[#loc3, #loc2]").line == 3
    assert module.where('callsite("x at (y)"(#loc) at callsite(#loc2 at #loc))').callers == (("c.py", 3), ("a b.py", 1))
    assert module.where("#loc3").line == module.where("#loc9").line == module.where('"name"').line == 0
    assert module.where('"C:\\\\x.py":5:6').file == "C:\\x.py"


@triton.jit
def loops_kernel(x, n):
    i = tl.arange(0, 16)
    total = tl.zeros([16], tl.float32)
    p = x + i
    c = 0
    for k in tl.range(0, n, num_stages=2):
        total += tl.load(p)
        p += 16
        if k > 3:
            c += 1
        else:
            total = total * 2
    while c < n:
        total *= 1.5
        c += 2
    for k in range(n):
        a = tl.load(x + i) * k
        tl.store(x + i, a)
    for k in range(n):
        a = tl.load(x + i) + k
        tl.store(x + i, a)
    tl.store(x + i, total)


def test_loops():
    module = tree(loops_kernel, x="*fp32", n="i32")
    check_names(module)
    loop, *siblings = named(module, "scf.for")
    assert len(siblings) == 2
    assert loop.results == [f"{loop.results[0][:-2]}#{i}" for i in range(3)]
    assert loop.result_types == [F16, Type((16,), "*f32"), Type((), "i32")]
    assert loop.operand_types == [Type((), "i32")] * 3 + loop.result_types
    assert loop.operands[1] == "%n"
    assert (loop.attributes["tt.num_stages"], loop.attributes["unsigned"]) == (2, False)
    ((inside,),) = loop.regions
    assert [type_ for _, type_ in inside.arguments] == [Type((), "i32"), *loop.result_types]
    assert inside.terminator.name == "scf.yield"
    (choice,) = [operation for operation in inside.operations if operation.name == "scf.if"]
    assert [block.terminator.name for (block,) in choice.regions] == ["scf.yield"] * 2
    assert choice.operand_types == [Type((), "i1")]
    assert choice.result_types == [F16, Type((), "i32")]
    assert set(choice.results) < set(inside.terminator.operands)
    (repeat,) = named(module, "scf.while")
    (before,), (after,) = repeat.regions
    assert repeat.operands == [loop.results[0], loop.results[2]]
    assert before.terminator.name == "scf.condition"
    assert before.terminator.operands[1:] == [name for name, _ in before.arguments]
    assert after.arguments != before.arguments
    assert named(module, "tt.store")[-1].operands[1] == repeat.results[0]
    # What MLIR calls %a in both loops has two names here.
    first, second = (loop.regions[0][0].operations for loop in siblings)
    assert {r for o in first for r in o.results}.isdisjoint({r for o in second for r in o.results})


@triton.jit(noinline=True)
def pair(a, b, x):
    tl.store(x, a)
    return a + b, b


@triton.jit
def branches_kernel(x, n):
    if n == 0:
        return
    u, v = pair(tl.load(x + 1), tl.load(x), x)
    tl.store(x, u * v)


def test_calls_and_branches():
    module = tree(branches_kernel, x="*fp32", n="i32")
    check_names(module)
    (call,) = named(module, "tt.call")
    callee = module.functions[call.attributes["callee"]]
    assert (callee.public, callee.attributes, callee.result_types) == (False, {"noinline": True}, [Type((), "f32")] * 2)
    assert callee.blocks[0].terminator.operand_types == callee.result_types
    assert named(module, "arith.mulf")[0].operands == call.results == [f"{call.results[0][:-2]}#{i}" for i in (0, 1)]
    (branch,) = named(module, "cf.cond_br")
    assert branch.attributes["to"] == [("bb1", []), ("bb2", [])]
    assert [block.label for block in module.kernel.blocks] == ["bb0", "bb1", "bb2"]


def test_branches_pass_arguments():
    module = body(
        "%c = arith.cmpi eq, %n, %n : i32",
        "cf.cond_br %c, ^bb2(%x, %n : f32, i32), ^bb3(%n : i32)",
        "^bb1:  // pred: ^bb0",
        "cf.br ^bb2(%later, %n : f32, i32)",
        '^bb2(%a: f32 loc("a"(#loc)), %b: i32 loc(unknown)):  // 2 preds: ^bb0, ^bb1',
        "%later = arith.addf %a, %x : f32",
        "cf.br ^bb1",
        "^bb3(%d: i32 loc(unknown)):  // pred: ^bb0",
    )
    check_names(module)
    conditional, jump = named(module, "cf.cond_br")[0], named(module, "cf.br")[0]
    assert conditional.attributes["to"] == [("bb2", ["%x", "%n"]), ("bb3", ["%n"])]
    assert conditional.operands == ["%c", "%x", "%n", "%n"]
    assert jump.attributes["to"] == [("bb2", ["%later", "%n"])]
    assert jump.operand_types == [Type((), "f32"), Type((), "i32")]


@triton.jit
def special_kernel(x, y, n):
    i = tl.arange(0, 16)
    v = tl.load(x + i)
    w = tl.load(y + i)
    tl.device_print('value {of} % "x"', v, n, hex=True)
    tl.device_assert(w > 0, 'must be > 0 {x} loc("no") : i32')
    tl.debug_barrier()
    tl.assume(n > 0)
    a = tl.inline_asm_elementwise("shf $0, $1; { %r1 }\n", "=r,r", [w], dtype=tl.int32, is_pure=True, pack=1)
    m, j = tl.max(tl.reshape(v, [4, 4]), 1, return_indices=True)
    tl.store(y + tl.arange(0, 4), j)
    tl.store(x + tl.arange(0, 4), m)
    tl.store(x + i, tl.cumsum(v, 0, reverse=True))
    b, c = tl.split(tl.reshape(libdevice.tanh(v), [8, 2]))
    tl.store(x + tl.arange(0, 8), b * c)
    a += tl.atomic_add(y + i, a, mask=w > 0, sem="relaxed", scope="cta")
    a += tl.atomic_cas(y, 0, n)
    tl.store(y + i, tl.gather(a, w, 0))
    tl.store(x + i, tl.dot(tl.trans(tl.load(x + i[:, None] + i[None, :])), tl.load(x + i[:, None] + i[None, :])).sum(1))


def test_special_operations():
    module = tree(special_kernel, debug=True, x="*fp32", y="*i32", n="i32")
    check_names(module)
    get = {operation.name: operation for operation in module.kernel.walk()}
    assert get["tt.print"].attributes == {"message": ' value {of} % "x": ', "hex": True, "isSigned": [0, 1]}
    assert get["tt.print"].operand_types == [F16, Type((), "i32")]
    # With debug, Triton asserts that sums do not overflow, too.
    (checked,) = [o for o in named(module, "tt.assert") if "overflow" not in o.attributes["message"]]
    assert checked.attributes == {"message": 'must be > 0 {x} loc("no") : i32'}
    assert checked.operand_types == [Type((16,), "i1")]
    assert get["llvm.intr.assume"].operand_types == [Type((), "i1")]
    assembly = get["tt.elementwise_inline_asm"].attributes
    assert (assembly["assembly"], assembly["constraints"]) == ("shf $0, $1; { %r1 }\n", "=r,r")
    pairs = [operation for operation in named(module, "tt.reduce") if len(operation.results) == 2]
    assert pairs[0].result_types == [Type((4,), "f32"), Type((4,), "i32")]
    assert len(pairs[0].regions[0][0].arguments) == 4
    assert get["tt.scan"].attributes == {"axis": 0, "reverse": True}
    assert get["tt.split"].result_types == [Type((8,), "f32")] * 2
    assert get["tt.extern_elementwise"].attributes["symbol"] == "__nv_tanhf"
    assert get["tt.atomic_rmw"].attributes == {"kind": "add", "semantics": "relaxed", "scope": "cta"}
    assert get["tt.atomic_cas"].attributes == {"semantics": "acq_rel", "scope": "gpu"}
    assert get["tt.gather"].attributes["axis"] == 0
    assert get["tt.trans"].attributes["order"] == [1, 0]
    assert get["tt.dot"].attributes["input_precision"] == "tf32"
    assert get["tt.dot"].operand_types == [Type((16, 16), "f32")] * 3
    assert any("barrier" in name for name in get)


@triton.jit
def descriptor_kernel(x, n):
    d = tl.make_tensor_descriptor(x, [n, 64], [64, 1], [16, 16])
    d.store([16, 0], d.load([0, n]))


def test_descriptors():
    module = tree(descriptor_kernel, capability=90, x="*fp32", n="i32")
    (made,) = named(module, "tt.make_tensor_descriptor")
    assert made.type == Type((), "!tt.tensordesc<tensor<16x16xf32>>")
    assert [type_.element for type_ in made.operand_types] == ["*f32", "i32", "i32", "i64", "i64"]
    (load,), (store,) = named(module, "tt.descriptor_load"), named(module, "tt.descriptor_store")
    assert (load.operands[0], load.type) == (made.result, Type((16, 16), "f32"))
    assert store.operands[-1] == load.result


CONSTANTS = [
    ("1.000000e-01 : f32", 0.10000000149011612),
    ("-0.000000e+00 : f32", -0.0),
    ("0x7F800000 : f32", math.inf),
    ("0xFF800000 : f32", -math.inf),
    ("0x7FC00000 : f32", math.nan),
    ("0.10000000149011612 : f64", 0.10000000149011612),
    ("1.000000e-310 : f64", 1e-310),
    ("0x7FF8000000000000 : f64", math.nan),
    ("6.550400e+04 : f16", 65504.0),
    ("5.960460e-08 : f16", 2.0**-24),
    ("0xFC00 : f16", -math.inf),
    ("0xFF80 : bf16", -math.inf),
    ("1.000980e-01 : bf16", 0.10009765625),
    ("-2147483648 : i32", -(2**31)),
    ("-9223372036854775808 : i64", -(2**63)),
    ("true", True),
    ("dense<false> : tensor<16xi1>", False),
    ("dense<-5> : tensor<16xi32>", -5),
    ("dense<0x7FC0> : tensor<4x4xbf16>", math.nan),
    ("dense<[1, -2, 3, 4]> : tensor<4xi32>", [1, -2, 3, 4]),
    ("dense<[[1.5, 0xFF800000], [-0.0, 2.0]]> : tensor<2x2xf32>", [1.5, -math.inf, -0.0, 2.0]),
    ("dense<[true, false]> : tensor<2xi1>", [True, False]),
    ('dense<"0x01000000FEFFFFFF"> : tensor<2xi32>', [1, -2]),
    ('dense<"0x0000C03F000080FF"> : tensor<2xf32>', [1.5, -math.inf]),
]


@pytest.mark.parametrize(("text", "value"), CONSTANTS, ids=[text for text, _ in CONSTANTS])
def test_constants(text, value):
    constant = one(f"%c = arith.constant {text} loc(#loc3)")
    found = constant.attributes["value"]
    # repr tells -0.0 from 0.0, True from 1, and holds NaN equal to itself.
    assert repr(found) == repr(value)
    assert constant.location == "#loc3"
    element = text.rpartition(" : ")[2].removesuffix(">").rpartition("x")[2] if " : " in text else "i1"
    assert constant.type.element == element


LINES = [
    ("%r = arith.addi %n, %n overflow<nsw, nuw> : i32", "i32", {"overflow": ["nsw", "nuw"]}),
    ("%r = arith.select %c, %x, %x : f32", "f32", {}),
    ("%r = tt.fp_to_fp %x, rounding = rtne : f32 -> f8E5M2", "f8E5M2", {"rounding": "rtne"}),
    ("%r = arith.index_cast %n : i32 to index", "index", {}),
    ("%r = tt.clampf %x, %x, %x, propagateNan = all : f32", "f32", {"propagateNan": "all"}),
    ("%r = tt.int_to_ptr %n : i64 -> !tt.ptr<!tt.ptr<f32>, 3>", "**f32", {}),
    ("%r = ub.poison : bf16", "bf16", {}),
    ("%r = tt.get_num_programs z : i32", "i32", {"axis": 2}),
    ("%r = tt.reshape %x allow_reorder : f32 -> tensor<4xf32>", "f32", {"allow_reorder": True}),
    ("%r = tt.make_tensor_ptr %p, [%n], [%n], [%n] {order = array<i32: 0>} : <tensor<8xf32>>", "*tensor<8xf32>",
     {"order": [0]}),
    ("%r = tt.advance %p, [%n, %n] : <tensor<8xf32>>", "*tensor<8xf32>", {}),
    ("%r = tt.load %p {boundaryCheck = array<i32: 0>, padding = 2 : i32} : !tt.ptr<tensor<8xf32>>", "f32",
     {"boundaryCheck": [0], "padding": 2}),
    ("%r = tt.load %p {cachePolicy = #tt.cache_policy<cache_modifier = cg, eviction_policy = evict_first>} : !tt.ptr<f32>",
     "f32", {"cache_modifier": "cg", "eviction_policy": "evict_first"}),
    ("%r = tt.make_tensor_descriptor %p, [%n], [%n] : <f32>, <8xf32>", "!tt.tensordesc<tensor<8xf32>>", {}),
    ("%r = tt.unsplat %x : tensor<1xf32>", "f32", {}),
    ('%r = tt.call @"f(1, %x)c"(%x) : (f32) -> f32', "f32", {"callee": "f(1, %x)c"}),
    ("%r = tt.dot %x, %x, %x : tensor<16x16xf16> * tensor<16x16xf16> -> tensor<16x16xf32>", "f32",
     {"input_precision": "ieee"}),
    ("%r = tt.dot_scaled %x, %x scale %n, %x lhs = e5m2 rhs = bf16 {fastMath = true} : A * A, i8 -> f32", "f32",
     {"scales": [False, True], "lhs": "e5m2", "rhs": "bf16", "fastMath": True}),
    ("%r = new.op %x by %n mode fast {a = [1, 2], b = {c = \"}\"}, d} : f32", "f32",
     {"a": [1, 2], "b": {"c": "}"}, "d": True, "text": "by mode fast"}),
    ('%r = "new.op"(%x, %n) <{axis = 1 : i32}> : (f32, i32) -> tensor<4x!tt.ptr<bf16>>', "*bf16", {"axis": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "element", "attributes"), LINES, ids=[line.split()[2] for line, _, _ in LINES])
def test_lines(line, element, attributes):
    operation = one(line, arguments="%x: f32, %p: !tt.ptr<f32>, %n: i32, %c: i1")
    assert (operation.type.element, operation.attributes) == (element, attributes)


def test_names_that_siblings_share():
    region = ["%r:2 = new.pair %x : (f32) -> (f32, f32)", "tt.store %p, %r#1 : !tt.ptr<f32>"]
    module = body("scf.if %c {", *region, "} else {", *region, "}", arguments="%x: f32, %p: !tt.ptr<f32>, %c: i1")
    check_names(module)
    assert [o.operands[1] for o in named(module, "tt.store")] == ["%r#1", "%r~1#1"]
    with pytest.raises(ValueError, match="%r#1 is not defined"):
        body("scf.if %x {", *region, "}", region[1])


def test_forms_that_this_triton_does_not_print():
    module = body(
        "scf.for unsigned %i = %n to %n step %n  : i64 {",
        "} {tt.flatten} loc(#loc7)",
        "scf.for %i = %n to %n step %n {",
        "}",
        "%a:2, %b = new.regions %x : f32 {",
        "} : (f32) -> (f32, f32, i32)",
        "tt.store %p, %a#1 : !tt.ptr<f32>",
        arguments="%x: f32, %p: !tt.ptr<f32, 1> {tt.divisibility = 16 : i32}, %n: i64",
    )
    check_names(module)
    first, second = named(module, "scf.for")
    assert (first.attributes, first.location) == ({"unsigned": True, "tt.flatten": True}, "#loc7")
    assert [loop.regions[0][0].arguments[0] for loop in (first, second)] == [
        ("%i", Type((), "i64")),
        ("%i~1", Type((), "index")),
    ]
    assert named(module, "new.regions")[0].results == ["%a#0", "%a#1", "%b"]
    assert named(module, "tt.store")[0].operands == ["%p", "%a#1"]
    assert module.kernel.argument_attributes[1] == {"tt.divisibility": 16}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("%r = arith.addf %x, %nothing : f32", "%nothing is not defined"),
        ("!!", "line 3: cannot read '!!': no operation"),
        ("%r = arith.constant dense<[1, 2]> : tensor<3xi32>", "cannot read '%r = arith.constant"),
        ("%r = new.op %x", "without a type"),
        ("%r:2 = new.op %x : (f32) -> (f32, f32, f32)", "2 results of 3 types"),
    ],
)
def test_what_cannot_be_read_is_shown(line, says):
    with pytest.raises(ValueError, match="Triton IR, line") as error:
        one(line)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_kernel_is_read_in_milliseconds():
    text = printed(special_kernel, passes=False, x="*fp32", y="*i32", n="i32")
    count = sum(1 for function in parse(text).functions.values() for _ in function.walk())
    best = math.inf
    for _ in range(10):
        start = time.thread_time()
        parse(text)
        best = min(best, time.thread_time() - start)
    # 12 us an operation on an idle machine; a scan that grows with the square of the text takes far longer.
    assert best < count * 100e-6
