"""Adam on torch in half precision: float32 masters, moments rounded at random; and tensors past 2^31 elements."""

import copy
import functools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import triton.language as tl
from triton.runtime.jit import JITFunction

import gradlab.torch as lab
from gradlab.kernels import adam_triton as kernels
from gradlab.kernels.common import rounding_triton as rounding
from gradlab.kernels.common.rounding_triton import key_at
from gradlab.kernels.cpu.launching import Kernel
from gradlab.kernels.optimizers import adam_step_triton, multi_tensor_triton
from gradlab.kernels.optimizers.multi_tensor_triton import chunk_of
from gradlab.kernels.runtime.launch_triton import launch
from tests.kernel_faults import plant

HALVES = [torch.bfloat16, torch.float16]
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def stepped(optimizer, ps, steps, seed=0):
    """Steps on gradients that hang on the seed and the step alone."""
    for step in range(steps):
        torch.manual_seed(seed + step)
        for p in ps:
            p.grad = torch.randn(p.shape, device=p.device).to(p.dtype)
        optimizer.step()


def mastered(device, dtype):
    """Against torch's Adam on float32 copies: the masters are those, and the parameters what they round to."""
    start = [torch.randn(s, device=device).to(dtype) for s in [(5, 7), (), (33,)]]
    ours = [torch.nn.Parameter(t.clone()) for t in start]
    theirs = [torch.nn.Parameter(t.float()) for t in start]
    a = lab.AdamW(ours, lr=1e-4, amsgrad=True, master_weights=True)
    b = torch.optim.AdamW(theirs, lr=1e-4, amsgrad=True)
    for step in range(6):
        torch.manual_seed(step)
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, device=device).to(dtype)
            q.grad = p.grad.float()
        a.step()
        b.step()
    for p, q, was in zip(ours, theirs, start, strict=True):
        state = a.state[p]
        # Steps of 1e-4, of which a bfloat16 near 1 does not see one.
        torch.testing.assert_close(state["master"], q.detach(), rtol=0, atol=2e-6)
        assert (q.detach() - was.float()).abs().max() > 1e-4
        assert torch.equal(p.detach(), state["master"].to(dtype))
        for name in MOMENTS:
            assert state[name].dtype == torch.float32
            torch.testing.assert_close(state[name], b.state[q][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", HALVES)
def test_masters_are_float32_adam(device, dtype):
    mastered(device, dtype)


@pytest.mark.parametrize(
    "fault",
    [
        ("masked_store(w_ptr, e, E, p, FULL)", "E = E"),
        ("masked_store(p_ptr, e, E, nearest(p, MASTER), FULL)", "E = E"),
        ("masked_store(p_ptr, e, E, nearest(p, MASTER), FULL)", "masked_store(p_ptr, e, E, p * 0, FULL)"),
        ("tl.where(nearest(w, MASTER) == p, w, p)", "p"),
        ("h = sign * g", "h = -sign * g"),
    ],
)
def test_a_broken_master_is_seen(device, monkeypatch, tmp_path, fault):
    plant(monkeypatch, tmp_path, adam_step_triton, "_step_chunk", fault, users=[kernels])
    with pytest.raises(AssertionError):
        mastered(device, torch.bfloat16)


def test_nearest_rounds_as_torch_does(device):
    """To bfloat16 and float16: ties to even, overflow, subnormals, infinities, what is not a number."""
    special = [
        0.0,
        -0.0,
        1 + 2**-8,
        1 + 3 * 2**-8,
        65519.9,
        65520.0,
        3.4e38,
        1e-40,
        6e-8,
        2.0**-24,
        torch.inf,
        -torch.inf,
        torch.nan,
    ]
    x = torch.cat([torch.tensor(special), torch.randn(200) * 10 ** torch.randint(-8, 8, (200,))]).to(device)
    for dtype in HALVES:
        p, w = torch.zeros_like(x).to(dtype), x.clone()
        # Nothing moves where the rate is 0: what is stored is the master, rounded.
        p.copy_(x)
        plain = kernels.scalars(lr=0.0, step=1, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)
        zeros = [torch.zeros_like(x) for _ in range(2)]
        kernels.adam_([p], [torch.zeros_like(p)], zeros[:1], zeros[1:], [], plain, masters=[w])
        torch.testing.assert_close(p, x.to(dtype), equal_nan=True, rtol=0, atol=0)
        torch.testing.assert_close(w, x, equal_nan=True, rtol=0, atol=0)


def test_a_parameter_that_somebody_changed_takes_its_master_with_it(device):
    """Weights loaded after the optimizer's state, or clamped between steps: no stale master restores the old ones."""
    p = torch.nn.Parameter(torch.ones(4, device=device).bfloat16())
    optimizer = lab.Adam([p], lr=0.01, master_weights=True)
    stepped(optimizer, [p], 2)
    master = optimizer.state[p]["master"].clone()
    with torch.no_grad():
        p[1:3] = 5.0
    p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    master[1:3] = 5.0
    assert torch.equal(optimizer.state[p]["master"], master)
    assert p.tolist()[1:3] == [5.0, 5.0]


@pytest.mark.parametrize("options", [{}, {"state_dtype": torch.bfloat16, "seed": 3}])
def test_masters_survive_a_state_dict(device, options):
    """A run that is stopped, saved and taken up again is the run that went on, bit for bit."""
    start = torch.randn(40, device=device).bfloat16()
    runs = []
    for stopped in (False, True):
        p = torch.nn.Parameter(start.clone())
        optimizer = lab.Adam([p], lr=0.01, amsgrad=True, master_weights=True, **options)
        stepped(optimizer, [p], 2)
        if stopped:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = lab.Adam([p], master_weights=True, **options)
            optimizer.load_state_dict(saved)
        stepped(optimizer, [p], 3, seed=9)
        runs.append((p.detach(), optimizer.state[p]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1].keys() == runs[1][1].keys()
    for name, value in runs[0][1].items():
        assert value.dtype == runs[1][1][name].dtype
        assert torch.equal(value, runs[1][1][name])


def test_a_state_of_torch_gets_masters_and_ours_loses_them_there(device):
    p = torch.nn.Parameter(torch.randn(9, device=device).bfloat16())
    q = torch.nn.Parameter(p.detach().clone())
    theirs = torch.optim.Adam([q], lr=0.01)
    stepped(theirs, [q], 2)
    ours = lab.Adam([p], master_weights=True)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert ours.state[p]["exp_avg"].dtype == torch.float32
    stepped(ours, [p], 1)
    assert ours.state[p]["step"] == 3
    assert torch.equal(ours.state[p]["master"].bfloat16(), p.detach())
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    stepped(theirs, [q], 1)
    plain = lab.Adam([p])
    plain.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert "master" not in plain.state[p]
    stepped(plain, [p], 1)


def rounded(device, seed=0, number=0, step=1.0, size=2**16, value=0.3):
    """The moments of one step on a gradient that is the same everywhere, rounded at random; and what they were."""
    p, g = torch.zeros(size, device=device), torch.full((size,), value, device=device)
    m, v, x = (torch.zeros(size, device=device, dtype=torch.bfloat16) for _ in range(3))
    plain = kernels.scalars(lr=0.1, step=math.inf, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)
    kernels.adam_(
        [p], [g], [m], [v], [x], plain, steps=[torch.tensor(step, device=device)], keys=[rounding.key(seed, number)]
    )
    exact = np.float32(1 - 0.9) * np.float32(value), np.float32(1 - 0.999) * np.float32(value) * np.float32(value)
    return [t.double() for t in (m, v, x)], (exact[0], exact[1], exact[1])


def unbiased(device):
    """Each moment is one of its two neighbours, up as often as it is near it, by itself and beside the others."""
    moments, exact = rounded(device)
    ups = []
    for found, value in zip(moments, exact, strict=True):
        low = np.uint32(value.view(np.uint32) & 0xFFFF0000).view(np.float32)
        high = np.uint32((value.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
        assert set(found.unique().tolist()) == {float(low), float(high)}
        share = (float(value) - float(low)) / (float(high) - float(low))
        ups.append((found == float(high)).double() - share)
        # Five times the standard deviation of the mean; half an ulp in the value itself.
        assert abs(ups[-1].mean().item()) < 5 * math.sqrt(share * (1 - share) / found.numel()) + 2**-15
    for i in range(3):
        for other in (ups[i].roll(1), ups[(i + 1) % 3]):
            assert abs((ups[i] * other).mean() / ups[i].std() / other.std()) < 5 / math.sqrt(2**16)


def test_random_rounding_is_unbiased(device):
    unbiased(device)


@pytest.mark.parametrize(
    "fault",
    [
        ("stochastic(m.to(tl.float32), bits & 0xFFFF)", "stochastic(m.to(tl.float32), 0 * bits)"),
        ("stochastic(v.to(tl.float32), bits >> 16)", "stochastic(v.to(tl.float32), (bits >> 16) | 0x8000)"),
        ("stochastic(v.to(tl.float32), bits >> 16)", "stochastic(v.to(tl.float32), bits & 0xFFFF)"),
        ("mixed(bits) & 0xFFFF", "bits >> 16"),
        ("bits = random_bits(e, key0, key1)", "bits = random_bits(e // 2, key0, key1)"),
    ],
)
def test_a_biased_rounding_is_seen(device, monkeypatch, tmp_path, fault):
    plant(monkeypatch, tmp_path, adam_step_triton, "_step_chunk", fault, users=[kernels])
    with pytest.raises(AssertionError):
        unbiased(device)


def test_random_rounding_hangs_on_seed_step_tensor_and_element_alone(device, monkeypatch):
    """Same four, same bits, however the launch is cut; another of them, other bits in about half the places."""
    options = {"size": 600, "seed": 1, "number": 2, "step": 3.0}
    first, _ = rounded(device, **options)
    for name, value in (("seed", 2), ("seed", 1 + 2**32), ("number", 3), ("step", 4.0)):
        other, _ = rounded(device, **{**options, name: value})
        for a, b in zip(first, other, strict=True):
            assert 0.3 < (a != b).double().mean() < 0.7, name
    monkeypatch.setattr(kernels, "launch_many", functools.partial(multi_tensor_triton.launch_many, chunk=128))
    for a, b in zip(first, rounded(device, **options)[0], strict=True):
        assert torch.equal(a, b)


def keys_of(y_ptr):
    """The keys of one tensor's step for three chunks that start 2^31 elements apart."""
    i = tl.program_id(0).to(tl.int64)
    one, other = key_at(i * 0 + 7, tl.load(y_ptr).to(tl.float32) * 0 + 1, i << 31)
    tl.store(y_ptr + 2 * i, one.to(tl.int64))
    tl.store(y_ptr + 2 * i + 1, other.to(tl.int64))


def test_elements_past_2_to_the_32_have_bits_of_their_own(device):
    """The upper half of an element's number goes into the key of its chunk."""
    y = torch.zeros(3, 2, dtype=torch.int64, device=device)
    launch(JITFunction(keys_of), [3], y, writes=[y])
    first, second, third = y.tolist()
    assert first == second
    assert first != third


def test_moments_in_bfloat16_train_as_float32_do(device):
    """A second moment that grows by less than half an ulp a step: to nearest it stands still, at random it arrives."""
    start, g = torch.zeros(2**14, device=device), 2.0
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        p = torch.nn.Parameter(start.clone())
        optimizer = lab.Adam([p], betas=(0.9, 0.999), state_dtype=dtype)
        for _ in range(30):
            p.grad = torch.full_like(p, g)
            optimizer.step()
            if optimizer.state[p]["step"] == 1:
                optimizer.state[p]["exp_avg_sq"].fill_(1.0)
        found[dtype] = optimizer.state[p]["exp_avg_sq"].float()
        assert optimizer.state[p]["exp_avg"].dtype == dtype
    want = found[torch.float32].mean().item()
    assert want > 1.05
    # Each of 29 roundings errs by at most 2^-7, with no mean.
    assert abs(found[torch.bfloat16].mean().item() - want) < 5 * 2**-7 * math.sqrt(29 / 2**14)


def places(y_ptr, map_ptr, BE: tl.constexpr):
    """Where each program's chunk of its tensor starts."""
    tl.store(y_ptr + tl.program_id(0), chunk_of(map_ptr, BE)[1])


def starts(device):
    """The starts of eight chunks of 2^30 elements each."""
    y = torch.zeros(8, dtype=torch.int64, device=device)
    pairs = torch.stack([torch.zeros(8), torch.arange(8)], 1).to(device, torch.int32)
    launch(JITFunction(places), [8], y, pairs, BE=2**30, writes=[y])
    return y.tolist()


def test_chunks_past_2_to_the_31_start_where_they_are(device, monkeypatch, tmp_path):
    want = [i * 2**30 for i in range(8)]
    assert starts(device) == want
    plant(monkeypatch, tmp_path, multi_tensor_triton, "chunk_of", (".to(tl.int64) * BE", " * BE"))
    monkeypatch.setitem(globals(), "chunk_of", multi_tensor_triton.chunk_of)
    assert starts(device) != want


def test_a_tensor_past_2_to_the_31_elements(tmp_path, monkeypatch):
    """The last chunk of files with holes: the only one that runs, and the only memory that is there."""
    E = 2**31 + 5
    p, g, m, v = (torch.from_file(str(tmp_path / n), shared=True, size=E, dtype=torch.float16) for n in "pgmv")
    p[-5:], g[-5:] = 1.0, torch.arange(1.0, 6.0)
    programs = []

    def last(kernel, grid, values):
        programs.append(grid)
        memory = kernel._take()
        kernel._slots.write(memory.arguments, values)
        assert kernel._run(memory, memory.address, math.prod(grid) - 1, math.prod(grid), grid) is None

    monkeypatch.setattr(Kernel, "__call__", last)
    kernels.adam_(
        [p], [g], [m], [v], [], kernels.scalars(lr=0.5, step=1, beta1=0.9, beta2=0.75, eps=0.0, weight_decay=0.0)
    )
    assert programs == [(2**20 + 1, 1, 1)]
    assert p[-5:].tolist() == [0.5] * 5
    assert v[-5:].tolist() == [0.25 * i * i for i in range(1, 6)]
    # Where an offset of 32 bits would have gone, and beside.
    for t in (p, m, v):
        assert not t[:8].any()
        assert not t[2**31 - 8 : 2**31].any()


def test_the_optimizer_rounds_by_its_seed_and_each_parameter_by_its_number(device):
    """The same gradient everywhere: another seed, parameter or step rounds otherwise, the same ones alike."""

    def run(seed, groups=1):
        ps = [torch.nn.Parameter(torch.zeros(400, device=device)) for _ in range(2)]
        each = len(ps) // groups
        optimizer = lab.Adam(
            [{"params": ps[i * each : (i + 1) * each], "eps": 1e-8} for i in range(groups)],
            state_dtype=torch.bfloat16,
            seed=seed,
        )
        for p in ps:
            p.grad = torch.full_like(p, 0.3)
        optimizer.step()
        return [optimizer.state[p]["exp_avg"].clone() for p in ps]

    first = run(1)
    for again in (run(1), run(1, groups=2)):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (run(2)[0], first[1]):
        assert 0.3 < (first[0] != other).double().mean() < 0.7
