"""The task `language`: its loss is that of torch in less memory, its figures are those of the whole text."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bpfree
from bpfree import UserError
from bpfree.data import make_dataset
from bpfree.data.preprocess import Preprocess
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.rules.fa import FA
from bpfree.runs.config_file import load_config
from bpfree.tasks import Language, cross_entropy
from bpfree.tasks.cross_entropy import summed_cross_entropy
from bpfree.training.evaluation import evaluate_split
from bpfree.types import Batch
from tests.helpers import optimizer_for_any_task, repeatable_rule

V, B, T = 7, 5, 6
NET = {"name": "gru", "hidden": [12, 10], "each_step": True, "vocabulary": V}
DECODER = {"name": "transformer", "width": 16, "depth": 3, "heads": 2, "each_step": True, "vocabulary": V}


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(B, T, V, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def tokens():
    y = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))
    y[0, :2] = -100
    return y


@pytest.fixture(params=[1 << 22, 3 * V])
def chunk(request, monkeypatch):
    """All tokens at once, or three at a time; the 30 tokens then have a last part that is full."""
    monkeypatch.setattr(cross_entropy, "CHUNK", request.param)


def plain(logits, y, **options):
    return F.cross_entropy(logits.flatten(0, -2), y.flatten(), ignore_index=-100, **options)


# The loss


def test_the_loss_and_its_gradient_are_those_of_torch(logits, tokens, chunk):
    ours = Language(V).loss(logits, Batch(tokens, tokens))
    theirs = plain(logits, tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-14)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when it loads forward derivatives
def test_first_and_second_derivatives_forwards_and_backwards(chunk):
    torch.manual_seed(0)
    logits = torch.randn(4, V, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, -100, 6, 2])
    assert torch.autograd.gradcheck(summed_cross_entropy, (logits, y, -100), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(summed_cross_entropy, (logits, y, -100))


def test_members_side_by_side_have_the_loss_of_each(logits, tokens, chunk):
    members = torch.stack([logits.detach(), 2 * logits.detach()]).flatten(1, 2)  # [P, B*T, V]
    together = torch.func.vmap(lambda out: summed_cross_entropy(out, tokens.flatten(), -100))(members)
    alone = torch.stack([summed_cross_entropy(out, tokens.flatten(), -100) for out in members])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


class Largest(TorchDispatchMode):
    """Counts how often memory of so many bytes is taken. It holds no tensor, since that would cause copies."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            is_large = isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.size
            self.count += is_large and tensor.untyped_storage().data_ptr() not in given
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_the_logits_only_their_gradient_is_of_that_size(dtype, monkeypatch):
    n, v = 64, 500
    monkeypatch.setattr(cross_entropy, "CHUNK", 8 * v)
    logits = torch.randn(n, v, dtype=dtype, requires_grad=True)
    y = torch.randint(v, (n,))
    found = {}
    for name, loss in (("ours", lambda: summed_cross_entropy(logits, y, -100)), ("torch", lambda: plain(logits, y))):
        with Largest(logits.numel() * dtype.itemsize) as largest:
            loss().backward()
        logits.grad = None
        found[name] = largest.count
    assert found["ours"] == 1
    assert found["torch"] > 1, "the measure sees what torch keeps"


def test_tokens_that_do_not_count_do_not_count(logits, tokens):
    task = Language(V)
    batch = Batch(tokens, tokens)
    assert int(task.weight("loss", batch)) == B * T - 2
    loss = task.loss(logits, batch)
    assert not torch.autograd.grad(loss, logits)[0][0, :2].any()
    nothing = Batch(tokens, torch.full_like(tokens, -100))
    assert float(task.loss(logits.detach(), nothing)) == 0
    assert float(task.metrics(logits.detach(), nothing)["accuracy"]) == 0


def test_another_index_may_not_count(logits, tokens):
    y = tokens.where(tokens != -100, 3)
    assert float(Language(V, ignore_index=3).loss(logits.detach(), Batch(y, y))) == pytest.approx(
        float(F.cross_entropy(logits.detach().flatten(0, 1), y.flatten(), ignore_index=3))
    )


def test_the_target_is_indices(tokens):
    target = Language(V).target(Batch(tokens, tokens))
    assert target.dtype == torch.int64
    assert torch.equal(target, tokens.flatten())


# Figures of a split


def test_figures_are_of_the_whole_split_however_it_is_cut(logits, tokens):
    sizes = (1, 2, 1, 3, 1, 1, 2)
    task, out = Language(V, token_bytes=sizes), logits.detach()
    counts = tokens != -100
    nats = float(plain(out, tokens, reduction="sum"))
    n, size = int(counts.sum()), sum(sizes[i] for i in tokens[counts].tolist())
    for step in (1, 2, B):
        batches = [Batch(out[i : i + step], tokens[i : i + step]) for i in range(0, B, step)]
        metrics = evaluate_split(task, batches, lambda x: x).metrics
        assert metrics["loss"] == pytest.approx(nats / n)
        assert metrics["perplexity"] == pytest.approx(math.exp(nats / n))
        assert metrics["bits_per_token"] == pytest.approx(nats / n / math.log(2))
        assert metrics["bits_per_byte"] == pytest.approx(nats / size / math.log(2))
        assert metrics["accuracy"] == pytest.approx(float((out.argmax(-1) == tokens)[counts].double().mean()))
    assert "bits_per_byte" not in evaluate_split(Language(V), batches, lambda x: x).metrics


def test_a_uniform_prediction_costs_the_bits_of_a_byte():
    y = torch.randint(256, (2, 3))
    task = Language(256, token_bytes=(1,) * 256)
    metrics = evaluate_split(task, [Batch(y, y)], lambda x: torch.zeros(2, 3, 256)).metrics
    assert metrics["perplexity"] == pytest.approx(256, rel=1e-5)
    assert metrics["bits_per_token"] == metrics["bits_per_byte"] == pytest.approx(8, rel=1e-6)


def test_a_loss_without_bounds_gives_infinite_perplexity():
    y = torch.zeros(1, 1, dtype=torch.int64)
    out = torch.tensor([[[-1e6, 0.0]]])
    assert evaluate_split(Language(2), [Batch(y, y)], lambda x: out).metrics["perplexity"] == math.inf


# Nets and rules


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_steps_over_tokens_are_the_whole_net(name):
    torch.manual_seed(0)
    net = NETS[name]((T,), V, hidden=[8, 6], each_step=True, vocabulary=V).double()
    x, state, outs = torch.randint(V, (3, T)), None, []
    for token in x.unbind(1):
        out, state = net.step(token, state)
        outs.append(out)
    torch.testing.assert_close(net(x), torch.stack(outs, 1), rtol=1e-12, atol=1e-12)


def counted(n=48, length=8):
    """Texts that count upwards modulo V: easy to learn."""
    x = (torch.arange(n)[:, None] + torch.arange(length + 1)) % V
    return x[:, :-1], x[:, 1:]


@pytest.mark.parametrize("name", list(RULES))
def test_a_rule_learns_language_or_refuses_it(name):
    if "language" not in RULES[name].tasks:
        with pytest.raises(UserError, match=f"rule '{name}' .* so it cannot predict the next token") as caught:
            load_config(f"digits/{name}", ["task=language"])
        assert "\n" not in str(caught.value)
        return
    net = {**NET, "name": "liquid" if issubclass(RULES[name], FA) else "gru"}
    options = {"optimizer": optimizer_for_any_task(name, lr=1e-2), "task": "language", "batch_size": 16}
    rule = repeatable_rule(name)
    if RULES[name].needs_net is not None:
        net, rule = DECODER, {"name": name, "experimental": True}
    run = bpfree.fit(net, counted(), rule, epochs=6, **options)
    losses = [record["train"]["loss"] for record in run.metrics]
    assert losses[-1] < losses[0]
    assert all(map(math.isfinite, losses))
    assert run.metrics[-1]["validation"]["perplexity"] > 1


def test_a_run_predicts_tokens(tmp_path):
    x, y = counted()
    bpfree.fit(NET, (x, y), "mono_forward", epochs=15, task="language", batch_size=16, out=tmp_path / "run",
                     optimizer={"name": "adam", "lr": 2e-2})  # fmt: skip
    loaded = bpfree.load(tmp_path / "run")
    predicted = loaded.predict(x)
    assert predicted.shape == y.shape
    assert (predicted == y).double().mean() > 0.9
    torch.testing.assert_close(loaded.predict_proba(x).sum(-1), torch.ones(y.shape))


def test_padding_does_not_change_what_is_learned():
    x, y = counted(16)
    padded = torch.cat([x, torch.zeros(16, 3, dtype=torch.int64)], 1), torch.cat([y, torch.full((16, 3), -100)], 1)
    weights = []
    for data in ((x, y), padded):
        run = bpfree.fit(NET, data, "backprop", epochs=1, task="language", batch_size=8, validation=0.0)
        weights.append(torch.cat([p.flatten() for p in run.net.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": (counted()[0], counted()[0][:, 0])}, r"the shape \[48\], allowed with task=language: \[N, T\]"),
        ({"net": {**NET, "each_step": False}}, "its output is .*, but 7 scores for each next token need"),
        ({"net": {**NET, "vocabulary": None}}, r"or with net.vocabulary tokens \[steps\]"),
        ({"net": {**NET, "vocabulary": 0}}, "net.vocabulary: found 0"),
        ({"data": "digits"}, r"found 'language' on samples \[1, 8, 8\] with labels \[\]"),
        ({"readout": "ridge"}, "found 'ridge' for the task language"),
        ({"trackers": ["segment_accuracy"]}, "needs one class for each sample"),
        ({"label_noise": 0.1}, "data.label_noise: needs classes"),
    ],
)
def test_what_cannot_be_is_one_clear_line(options, message):
    given = {"net": NET, "data": counted(), "rule": "backprop", "epochs": 1, "task": "language", **options}
    with pytest.raises(UserError, match=message) as caught:
        bpfree.fit(given.pop("net"), given.pop("data"), given.pop("rule"), **given)
    assert "\n" not in str(caught.value)


def test_the_task_refuses_what_is_no_vocabulary():
    with pytest.raises(UserError, match="classes: found 1"):
        Language(1)
    with pytest.raises(UserError, match="token_bytes: found 2 numbers, allowed: 3"):
        Language(3, token_bytes=(1, 1))
    with pytest.raises(UserError, match=r"labels: found torch.float32"):
        Language(3).loss(torch.zeros(1, 2, 3), Batch(torch.zeros(1, 2), torch.zeros(1, 2)))


def test_data_of_ones_own_need_only_tokens():
    x = torch.tensor([[0, 5, 1], [1, 0, 2]])
    dataset = make_dataset((x, x.roll(-1, 1).clamp_max(3)), answers="tokens")
    assert dataset.classes == 6, "a token that is never a label is in the vocabulary"
    task = Language.of(Preprocess.of(dataset, dataset.train))
    assert task.dim == 6
    assert task.token_bytes is None
