"""A CPU's assembly read: kinds of instructions, loops, spills, calls, lines, frames; on x86-64 and aarch64."""

import pytest

from gradlab.profiling.machine_code.assembly import read, split
from gradlab.profiling.machine_code.assembly_arm import ARM
from gradlab.profiling.machine_code.assembly_x86 import X86
from gradlab.profiling.machine_code.counts import CPUCounts
from gradlab.profiling.machine_code.instruction import Instruction

X86_KERNEL = """
\t.text
\t.type\tmicro,@function
micro:                                  # @micro
# %bb.0:                                # %entry
\tvmovups\t(%rdx), %ymm0
.LBB0_1:                                # %loop
                                        # =>This Inner Loop Header: Depth=1
\tvbroadcastss\t580(%rdi,%rax,4), %ymm11
\tvfmadd231ps\t(%rsi), %ymm11, %ymm0    # ymm0 = (ymm11 * mem) + ymm0
\tjb\t.LBB0_1
# %bb.2:                                # %done
\tvmovups\t%ymm0, (%rdx)
\tretq
.Lfunc_end0:
run:                                    # @run
# %bb.0:                                # %entry
\tpushq\t%rbp
\tsubq\t$4096, %rsp                     # imm = 0x1000
\tmovq\t%rdx, 24(%rsp)                  # 8-byte Spill
\t.loc\t1 7 0                           # op.py:7:0
.LBB1_2:                                # %program_head
                                        # =>This Loop Header: Depth=1
                                        #     Child Loop BB1_7 Depth 2
\tmovabsq\t$memset, %r14
\tmovq\t%r14, %rcx
\tcallq\t*%rcx
\tdivq\t24(%rsp)                        # 8-byte Folded Reload
\t.loc\t1 9 0 is_stmt 1                 # op.py:9:0
\tmovabsq\t$micro, %rax
\tcallq\t*%rax
\tjmp\t.LBB1_7
.LBB1_6:                                #   in Loop: Header=BB1_7 Depth=2
\tvmovaps\t%ymm3, 64(%rsp)              # 32-byte Spill
\tvaddps\t64(%rsp), %ymm3, %ymm3        # 32-byte Folded Reload
.LBB1_7:                                # %L61
                                        #   Parent Loop BB1_2 Depth=1
                                        # =>  This Inner Loop Header: Depth=2
\t.loc\t1 11 0                          # op.py:11:0
\tvmaskmovps\t-96(%rdx,%r8,4), %ymm2, %ymm3
\tvinsertps\t$16, 4(%rdx), %xmm3, %xmm4
\tvaddss\t%xmm1, %xmm2, %xmm3
\tvdivps\t%ymm1, %ymm2, %ymm3
\tvmaskmovps\t%ymm3, %ymm2, -96(%rcx,%r8,4)
\tjb\t.LBB1_6
# %bb.9:                                #   in Loop: Header=BB1_2 Depth=1
\t.loc\t1 0 0                           # op.py:0:0
\tjge\t.LBB1_2
# %bb.11:                               # %done
\tmovq\t24(%rsp), %rdx                  # 8-byte Reload
\tretq
"""


def test_x86():
    found = read(X86_KERNEL, "x86_64-unknown-linux-gnu", 256, "run")
    assert found.counts == CPUCounts(
        instructions=27, loads=5, wide_loads=3, stores=2, wide_stores=2, spills=3, spill_bytes=72, spill_stores=1, bits=256,
        fmas=1, gathers=1, masked=2, scalars=1, divisions=2, calls=1, lines={7: 4, 9: 11, 11: 6},
    )  # fmt: skip
    assert found.inner == CPUCounts(
        instructions=11,
        loads=4,
        wide_loads=2,
        stores=1,
        wide_stores=1,
        spills=2,
        spill_bytes=64,
        spill_stores=1,
        bits=256,
        fmas=1,
        gathers=1,
        masked=2,
        scalars=1,
        divisions=1,
    )
    assert (found.registers, found.stack, found.calls) == (6, 4096 + 8, ("memset",))
    assert (found.inner.share, found.inner.products) == (3 / 5, 1)


ARM_KERNEL = """
run:                                    // @run
// %bb.0:                               // %entry
\tstr\tx23, [sp, #-48]!                // 8-byte Folded Spill
\tsub\tsp, sp, #2, lsl #12             // =8192
\tmovz\tx8, #:abs_g0_nc:expf
.LBB0_3:                                // %program_head
                                        // =>This Loop Header: Depth=1
                                        //     Child Loop BB0_14 Depth 2
\t.loc\t1 5 0                           // op.py:5:0
\tudiv\tx6, x1, x12
\tblr\tx8
.LBB0_14:                               // %L64
                                        //   Parent Loop BB0_3 Depth=1
                                        // =>  This Inner Loop Header: Depth=2
\tldp\tq3, q4, [x19]
\tld1\t{ v3.h }[1], [x23]
\tld1rw\t{ z2.s }, p0/z, [x1]
\tfmla\tv3.4s, v4.4s, v5.s[1]
\tfadd\ts0, s1, s2
\tst1w\t{ z2.s }, p0, [x20]
\tstr\tq5, [sp, #16]                   // 16-byte Spill
\tb.hs\t.LBB0_14
// %bb.2:
\tldr\tx23, [sp], #48                  // 8-byte Folded Reload
\tret
"""


def test_aarch64():
    found = read(ARM_KERNEL, "aarch64-unknown-linux-gnu", 128, "run")
    assert found.inner == CPUCounts(
        instructions=8,
        loads=3,
        wide_loads=1,
        stores=1,
        wide_stores=1,
        spills=1,
        spill_bytes=16,
        spill_stores=1,
        bits=128,
        fmas=1,
        gathers=1,
        masked=1,
        scalars=1,
    )
    assert (found.counts.divisions, found.counts.calls, found.counts.spills) == (1, 1, 1)
    assert (found.stack, found.calls) == (48 + 8192, ("expf",))
    assert found.counts.lines == {5: 12}


@pytest.mark.parametrize(
    ("dialect", "text", "kinds", "bits"),
    [
        (X86, "vmovups (%rdx), %zmm0 {%k1} {z}", "loads masked wide_loads", 512),
        (X86, "vaddps (%rdx){1to16}, %zmm0, %zmm1", "loads", 512),
        (X86, "vpmovdw %zmm0, (%rdx)", "stores wide_stores", 512),
        (X86, "vpscatterdd %zmm0, (%rdi,%zmm1,4) {%k1}", "scatters stores", 512),
        (X86, "vgatherdps (%rdi,%zmm1,4), %zmm0 {%k1}", "gathers loads", 512),
        (X86, "vextractps $1, %xmm0, 4(%rdi)", "scatters stores", 128),
        (X86, "vextracti128 $1, %ymm0, (%rdi)", "stores wide_stores", 256),
        (X86, "vpextrw $1, %xmm0, (%rdi)", "scatters stores", 128),
        (X86, "vmovss (%rdi), %xmm0", "loads", 0),
        (X86, "vcvtsi2ss %eax, %xmm0, %xmm0", "scalars", 0),
        (X86, "vucomiss (%rdi), %xmm0", "loads", 0),
        (X86, "vpmaxsd %ymm0, %ymm1, %ymm2", "", 256),
        (X86, "vpackssdw %ymm0, %ymm1, %ymm2", "", 256),
        (X86, "vfnmadd213sd (%rax), %xmm1, %xmm2", "fmas loads scalars", 0),
        (X86, "vdpbf16ps %zmm0, %zmm1, %zmm2", "fmas", 512),
        (X86, "tdpbf16ps %tmm2, %tmm1, %tmm0", "tensor", 0),
        (X86, "tileloadd (%rax,%rcx), %tmm0", "loads wide_loads", 0),
        (X86, "addl $4, 8(%rax)", "loads stores", 0),
        (X86, "cmpl $4, 8(%rax)", "loads", 0),
        (X86, "leaq 8(%rax), %rcx", "", 0),
        (X86, "vsqrtsd %xmm0, %xmm0, %xmm0", "divisions scalars", 0),
        (X86, "lock", "atomics", 0),
        (ARM, "ldr q0, [x1]", "loads wide_loads", 128),
        (ARM, "ldr w0, [x1]", "loads", 0),
        (ARM, "ld1w { z0.s }, p0/z, [x1, z2.s, sxtw #2]", "gathers loads", 128),
        (ARM, "ld1r { v0.4s }, [x1]", "loads", 128),
        (ARM, "st1 { v0.s }[1], [x1]", "scatters stores", 0),
        (ARM, "ldadd w0, w1, [x2]", "atomics", 0),
        (ARM, "bfmmla v0.4s, v1.8h, v2.8h", "fmas tensor", 128),
        (ARM, "fcvt s0, d1", "scalars", 0),
        (ARM, "fcmp s0, s1", "", 0),
        (ARM, "fmov s0, w1", "", 0),
        (ARM, "fdiv v0.4s, v1.4s, v2.4s", "divisions", 128),
        (ARM, "xtn v0.4h, v1.4s", "", 128),
        (ARM, "add x0, x0, #1", "", 0),
    ],
)
def test_an_instruction(dialect, text, kinds, bits):
    name, _, operands = text.partition(" ")
    found = dialect.read(Instruction(name, split(operands)), 128)
    assert (sorted(found.kinds), found.bits) == (kinds.split(), bits)
