"""Philox and what is drawn by it: known answers, independence of the call, and torch's operations in a forward pass."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bpfree.noise import Clock, Noise, StepNoise, counting_everywhere, kernel, philox
from bpfree.noise.draws import KeyedDraws, NotCapturable

ROWS = torch.arange(5)
# The test vectors of Random123, the authors' code: kat_vectors, philox4x32 with 10 rounds.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def clocked(step=5):
    clock = Clock(torch.device("cpu"))
    clock.set(step)
    return StepNoise(0, clock=clock)


@pytest.fixture
def counting():
    with counting_everywhere():
        yield


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_words_are_those_of_the_authors(counter, key, words, on_device):
    step = counter[3] << 32 | counter[2]
    step = torch.tensor(step - (step >> 63 << 64)) if on_device else step
    found = philox.philox(torch.tensor(counter[0]), torch.tensor(counter[1]), step, key[1] << 32 | key[0])
    assert [f"{int(word):08x}" for word in found] == words.split()


def test_a_number_depends_on_its_row_and_place_alone():
    whole = philox.words(7, 3, ROWS, 50)
    assert torch.equal(whole[2:4], philox.words(7, 3, ROWS[2:4], 50))
    assert torch.equal(whole[:, :9], philox.words(7, 3, ROWS, 9))
    assert torch.equal(whole, philox.words(7, torch.tensor(3), ROWS, 50))
    for other in (philox.words(8, 3, ROWS, 50), philox.words(7, 4, ROWS, 50), philox.words(7, 3 + 2**32, ROWS, 50)):
        assert len(set(whole.flatten().tolist()) & set(other.flatten().tolist())) == 0
    assert len(set(whole.flatten().tolist())) == whole.numel()


def test_the_numbers_have_their_distributions():
    normal = philox.normal(1, 0, ROWS, 40_000).double()
    for power, mean, deviation in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs(normal.pow(power).mean() - mean) < 4 * deviation / normal.numel() ** 0.5
    assert abs(torch.corrcoef(normal)[0, 1:]).max() < 4 / 40_000**0.5
    uniform = philox.uniform(1, 0, ROWS, 40_000)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    counts = torch.histc(uniform, 20, 0, 1)
    assert abs(counts - 10_000).max() < 4 * 10_000**0.5


@pytest.mark.usefixtures("counting")
def test_a_step_on_the_device_draws_the_numbers_of_its_key():
    plain, ticking = Noise(0, 5).fold("a", 1), clocked(5).fold("a", 1)
    assert torch.equal(plain.randn(3, 4), ticking.randn(3, 4))
    assert torch.equal(plain.randint(9, 50), ticking.randint(9, 50))
    assert set(plain.randint(9, 500).tolist()) == set(range(9))
    assert ticking.step == 5
    ticking.clock.set(6)
    assert torch.equal(plain.at(6).randn(3, 4), ticking.randn(3, 4))
    assert not torch.equal(plain.randn(3, 4), ticking.randn(3, 4))


@pytest.mark.usefixtures("counting")
def test_the_numbers_do_not_depend_on_the_type():
    noise = Noise(0, 1)
    exact = noise.randn(100, dtype=torch.float64)
    assert torch.equal(exact.float(), noise.randn(100))
    assert torch.equal(exact.bfloat16(), noise.randn(100, dtype=torch.bfloat16))


def test_what_only_the_host_knows_is_refused_in_a_captured_step():
    noise = clocked()
    noise.clock.hidden = True
    for asked in (lambda: noise.step, noise.generator, lambda: noise.fold("x").key()):
        with pytest.raises(NotCapturable):
            asked()
    with pytest.raises(NotCapturable, match="multinomial"), noise.global_rng():
        torch.multinomial(torch.ones(3), 1)


def test_a_dropout_mask_is_of_the_key_and_not_of_the_type():
    noise, x = clocked(), torch.ones(8, 32)
    masks = []
    for each in (x, x.bfloat16(), x.double(), x):
        with noise.global_rng():
            masks.append(F.dropout(each, 0.3) != 0)
            masks.append(F.dropout(each, 0.3) != 0)
    assert all(torch.equal(mask, masks[i % 2]) for i, mask in enumerate(masks))
    assert not torch.equal(masks[0], masks[1])
    assert abs(masks[0].float().mean() - 0.7) < 0.1
    assert noise.clock.drew


def test_torchs_random_operations_are_keyed_and_the_generators_untouched():
    draws = [
        torch.rand,
        torch.randn,
        lambda n: torch.rand_like(torch.ones(n)),
        lambda n: torch.randn_like(torch.ones(n)),
        lambda n: torch.bernoulli(torch.full((n,), 0.5)),
        lambda n: torch.empty(n).uniform_(-1, 2),
        lambda n: torch.empty(n).normal_(3, 0.1),
        lambda n: torch.randint(5, (n,)),
        lambda n: torch.randint(2, 5, (n,)),
        lambda n: torch.native_dropout(torch.ones(n), 0.5, True)[0],
        lambda n: nn.functional.scaled_dot_product_attention(*torch.ones(3, 1, n, 2)),
        lambda n: torch.multinomial(torch.ones(n), 3),  # seeded, since it cannot be keyed
    ]
    noise, before = clocked(), torch.get_rng_state()
    for draw in draws:
        found = []
        for _ in range(2):
            with noise.global_rng():
                found.append(draw(64))
        assert torch.equal(*found)
    assert torch.equal(before, torch.get_rng_state())


def test_a_net_that_draws_nothing_is_known_to_be_still():
    noise = clocked()
    with noise.global_rng():
        F.scaled_dot_product_attention(*torch.ones(3, 1, 4, 2))
        torch.ones(3).relu()
    assert not noise.clock.drew


@pytest.mark.skipif(not philox.has_triton(), reason="needs Triton, which comes with torch for CUDA")
def test_the_kernel_gives_the_same_words():
    """Where there is no GPU, Triton interprets the kernel: TRITON_INTERPRET=1."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        pytest.importorskip("triton.runtime.interpreter")
        if not hasattr(kernel._fill, "fn") or "Interpreted" not in type(kernel._fill).__name__:
            pytest.skip("needs TRITON_INTERPRET=1 in the environment, or a GPU")
    rows = torch.tensor([0, 3, 2**32 - 1], device=device)
    for key, step, n in ((2**63 + 12345, 2**40 + 7, 4099), (3, -1, 2)):
        words = kernel.drawn("words", key, step, rows, n)
        assert torch.equal(words, philox.drawn_by_torch("words", key, step, rows, n))
        for kind in ("uniform", "normal"):
            numbers = kernel.drawn(kind, key, step, rows, n)
            assert torch.allclose(numbers, philox.drawn_by_torch(kind, key, step, rows, n), rtol=1e-5, atol=1e-6)


def test_a_pass_counts_its_draws():
    mode = KeyedDraws(lambda kind, row, n: torch.full((n,), float(row)), lambda name: None)
    with mode:
        assert [float(torch.rand(1)) for _ in range(3)] == [0, 1, 2]
    assert mode.count == 3
