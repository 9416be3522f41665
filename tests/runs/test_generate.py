"""Text from a run: the net sees what it would see in a whole window, draws follow its scores, letters stay whole."""

import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

import bpfree
from bpfree import Noise, UserError
from bpfree.data.vocabulary import BYTES, Vocabulary
from bpfree.nets import NETS
from bpfree.runs.generate import Window, _pieces, draw
from tests.helpers import without_pictures
from tests.test_cli import refused, shell

T = 8
POEM = "".join(f"Über allen Gipfeln {i} ist Ruh\n" for i in range(60))
NETS_OF_TEXT = {
    "rope": {"name": "transformer", "width": 16, "depth": 2, "heads": 2},
    "learned": {"name": "transformer", "width": 16, "depth": 2, "heads": 2, "positions": "learned"},
    "gru": {"name": "gru", "hidden": [12]},
    "lstm": {"name": "lstm", "hidden": [12, 8]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("poem")
    (folder / "poem.txt").write_text(POEM, encoding="utf-8")
    return {"name": "text", "path": str(folder / "poem.txt"), "dir": str(folder), "context": T}


def trained(data, net, **options):
    if isinstance(net, str):
        net = NETS_OF_TEXT[net] | {"each_step": True, "vocabulary": 256}
    return bpfree.fit(net, data, "backprop", epochs=1, task="language", batch_size=8, **options)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    with without_pictures():
        return trained(data, "rope", out=tmp_path_factory.mktemp("runs") / "run")


class NoShorter(nn.Module):
    """A net that takes T tokens and no other number."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        assert x.shape[1] == T
        return self.net(x)


# What the net sees


@pytest.mark.parametrize("kind", NETS_OF_TEXT)
def test_a_step_from_a_state_gives_the_scores_of_the_whole_window(data, kind):
    """So does a net of another class, which reads the window again for each token."""
    run = trained(data, kind)
    run.net.double()
    tokens = Vocabulary(BYTES).encode(POEM.encode())[: 3 * T].tolist()
    windows = [Window(run.trainer, T), Window(run.trainer, T)]
    assert windows[0]._goes_on
    windows[1]._goes_on = False
    for place, token in enumerate(tokens):
        stepped, read = (window.read([token]) for window in windows)
        torch.testing.assert_close(stepped, read, rtol=0, atol=1e-12)
        seen = windows[0].tokens
        assert seen == tokens[place + 1 - len(seen) : place + 1]
        assert min(place + 1, T // 2) <= len(seen) <= T
        torch.testing.assert_close(read, run.net(torch.tensor([seen]))[0, -1].detach(), rtol=0, atol=1e-12)
    assert len(Window(run.trainer, T).tokens) == 0


def test_a_long_prompt_fills_the_window_with_its_end(run):
    window = Window(run.trainer, T)
    window.read(list(range(20)))
    assert window.tokens == list(range(12, 20))
    assert run.generate("x" * 20 + POEM[:T], tokens=9, seed=3) == run.generate(POEM[:T], tokens=9, seed=3)


def test_a_net_of_ones_own_may_take_whole_windows_only(data):
    torch.manual_seed(0)
    net = NETS["transformer"]((T,), 256, each_step=True, width=16, depth=1, heads=2)
    run = trained(data, NoShorter(net))
    assert len(run.generate("Ü", tokens=12, seed=1)) <= 12
    assert run.generate("Ü", tokens=12, seed=1) == run.generate("Ü", tokens=12, seed=1)


# What is drawn


def test_draws_follow_the_scores():
    scores = torch.tensor([1.0, -2.0, 3.0, 2.5, 0.0], dtype=torch.float64)
    n = 1500
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3)):
        drawn = torch.tensor([draw(scores, temperature, top_k, Noise(7).fold(i)) for i in range(n)])
        expected = (scores / temperature).softmax(0)
        if top_k is not None:
            expected = expected.where(expected >= expected.topk(top_k).values[-1], 0)
            expected /= expected.sum()
        found = torch.bincount(drawn, minlength=5) / n
        assert bool(((found - expected).abs() <= 4 * (expected * (1 - expected) / n).sqrt()).all())


def test_no_temperature_and_one_choice_take_the_likeliest(run):
    best = int(torch.tensor([0.1, 0.3, 0.2]).argmax())
    assert all(draw(torch.tensor([0.1, 0.3, 0.2]), 0.0, None, Noise(i)) == best for i in range(20))
    assert run.generate("Ü", temperature=0, tokens=20) == run.generate("Ü", top_k=1, tokens=20, seed=5)


def test_scores_of_minus_infinity_are_never_drawn_and_nan_is_an_error():
    scores = torch.tensor([-torch.inf, 0.0, -torch.inf], dtype=torch.float64)
    assert {draw(scores, 1.0, None, Noise(i)) for i in range(50)} == {1}
    with pytest.raises(UserError, match="the net gives NaN"):
        draw(torch.tensor([0.0, torch.nan]), 1.0, None, Noise(0))


def test_a_seed_gives_one_text_and_more_tokens_go_on_with_it(run):
    text = run.generate("Über", tokens=40, seed=4)
    assert text == run.generate("Über", tokens=40, seed=4)
    assert text != run.generate("Über", tokens=40, seed=5)
    pieces = list(run.stream("Über", tokens=40, seed=4))
    assert "".join(pieces) == text
    assert len(pieces) > 10, "it comes piece by piece"
    short = run.generate("Über", tokens=20, seed=4).rstrip("\ufffd")
    assert text.startswith(short)


def test_a_loaded_run_gives_the_same_text(run):
    assert bpfree.load(run.folder).generate("Ruh", tokens=30) == run.generate("Ruh", tokens=30)


# Letters


@pytest.mark.parametrize("size", [None, 300])
def test_letters_come_whole_whichever_tokens_are_drawn(size):
    text = "日本語 😀 é\n" * 3
    if size is not None:
        pytest.importorskip("tokenizers")
    vocabulary = Vocabulary(BYTES) if size is None else Vocabulary.train(POEM.encode(), size, "poem")
    tokens = vocabulary.encode(text.encode()).tolist()
    assert b"".join(vocabulary.pieces[token] for token in tokens) == text.encode()
    pieces = list(_pieces(vocabulary, iter(tokens)))
    assert "".join(pieces) == text
    assert len(pieces) > 10
    for end in range(len(tokens)):
        assert "".join(_pieces(vocabulary, iter(tokens[:end]))) == vocabulary.decode(tokens[:end])
    random = torch.randint(vocabulary.size, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    assert "".join(_pieces(vocabulary, iter(random))) == vocabulary.decode(random), "bytes that are not UTF-8"


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens: found 0, allowed: a number above 0"),
        ({"top_k": 0}, "top_k: found 0"),
        ({"temperature": -1.0}, "temperature: found -1.0, allowed: a number from 0 on"),
        ({"temperature": float("inf")}, "temperature: found inf"),
    ],
)
def test_bad_options_are_told_before_anything_is_drawn(run, options, message):
    with pytest.raises(UserError, match=message):
        run.stream("Ü", **options)
    with pytest.raises(UserError, match="prompt: found an empty text"):
        run.stream("")


def test_runs_that_do_not_predict_a_text_are_refused():
    x = torch.arange(40.0).view(20, 2)
    images = bpfree.fit("mlp", (x, torch.arange(20) % 2), "mono_forward", epochs=1)
    with pytest.raises(UserError, match="found a run of the task Classify, allowed: Language"):
        images.generate("x")
    tokens = torch.arange(160).view(20, 8) % 7
    net = {"name": "gru", "hidden": [4], "each_step": True, "vocabulary": 7}
    own = bpfree.fit(net, (tokens, (tokens + 1) % 7), "backprop", epochs=1, task="language")
    with pytest.raises(UserError, match="tokens whose letters are not known"):
        own.generate("x")


# The command


def test_the_command_prints_the_prompt_and_the_text(run, tmp_path):
    expected = run.generate("Über", tokens=15, temperature=0.5, top_k=4, seed=2)
    options = ("--tokens", 15, "--temperature", 0.5, "--top-k", 4, "--seed", 2)
    shown = shell("generate", run.folder, "Über", *options).stdout
    assert shown == f"Über{expected}\n"
    assert "temperature: found -1" in refused("generate", run.folder, "Ü", "--temperature", -1)
    assert "no readable config.yaml in it" in refused("generate", tmp_path, "Ü")


def command(*args):
    return [sys.executable, "-m", "bpfree", "generate", *map(str, args)]


def test_text_comes_at_once_and_ctrl_c_ends_it(run):
    with subprocess.Popen(
        command(run.folder, "-", "--tokens", 1_000_000), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdin.write("Über".encode())
        process.stdin.close()
        first = process.stdout.read(60)
        assert first.startswith("Über".encode())
        process.send_signal(signal.SIGINT)
        rest, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130
    assert errors.decode() == "interrupted\n"
    assert (first + rest).endswith(b"\n")
    (first + rest).decode("utf-8")


def test_a_reader_that_has_enough_gets_no_error(run):
    with subprocess.Popen(
        command(run.folder, "Ruh", "--tokens", 1_000_000), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_control_characters_do_not_reach_the_terminal(run, monkeypatch):
    drawn = iter("a\x1b]0;title\x07\x9b\n\tb")
    monkeypatch.setattr("bpfree.runs.run.stream", lambda *_, **__: drawn)
    shown = shell("generate", run.folder, "\x1bx").stdout
    assert shown == "\ufffdxa\ufffd]0;title\ufffd\ufffd\n\tb\n"
