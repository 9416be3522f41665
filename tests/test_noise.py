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
