import numpy as np
import torch

from bpfree.noise import Noise


def test_equal_keys_draw_equal_numbers_in_any_order():
    noise = Noise(3, 5)
    first = [noise.fold("a", i).randn(4) for i in range(3)]
    backwards = [noise.fold("a", i).randn(4) for i in reversed(range(3))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(backwards), strict=True))


def test_every_part_of_the_key_counts():
    keys = [Noise(0, 0), Noise(1, 0), Noise(0, 1), Noise(0, 0, ("a",)), Noise(0, 0, ("a", 1)), Noise(0, 0, ("a1",))]
    assert len({noise.key() for noise in keys}) == len(keys)
    assert Noise(0).at(4) == Noise(0, 4)


def test_the_key_is_the_same_in_every_process():
    assert Noise(1, 2, ("z", 3)).key() == 5331584489130536287, "a changed key changes every run ever made"


def test_words_are_of_the_key_alone_and_every_bit_is_fair():
    words = Noise(0, 3).words(20000)
    assert np.array_equal(words[:7], Noise(0, 3).words(7))
    assert not set(words) & set(Noise(0, 4).words(20000))
    ones = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).mean(0)
    assert np.abs(ones - 0.5).max() < 0.02, "5.6 standard deviations"
    assert Noise(1, 2, ("z", 3)).words(1)[0] == 2287902218001303313, "a changed draw changes every run ever made"


def test_global_rng_is_keyed_within_and_untouched_after(device):
    before = torch.get_rng_state()
    with Noise(7).global_rng(device):
        a = torch.rand(3, device=device)
    with Noise(7).global_rng(device):
        b = torch.rand(3, device=device)
    assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())


def test_permutation_is_one():
    assert sorted(Noise(0).permutation(100).tolist()) == list(range(100))


def test_numpys_integers_are_integers():
    assert Noise(np.int64(3), np.int32(1)).fold("z", np.int64(2)).key() == Noise(3, 1).fold("z", 2).key()
