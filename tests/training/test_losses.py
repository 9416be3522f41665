"""A task's loss is what every layer of a rule learns by: class weights, label smoothing, losses of one's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bpfree
from bpfree import Batch, Noise, Trainer, UserError
from bpfree.nets import NETS
from bpfree.rules import RULES
from bpfree.rules.predsim import similarity, similarity_loss
from bpfree.runs.config_file import load_config
from bpfree.tasks import Classify, Multilabel, Segment
from bpfree.training.evaluation import mean_metrics
from tests.helpers import TASK, bound

WEIGHTS = [0.5, 2.0, 1.0]


class Focal(Classify):
    """A loss of the user's own that reads y as class indices."""

    def loss(self, out, batch):
        sure = out.softmax(1).gather(1, batch.y[:, None])[:, 0]
        return -((1 - sure) ** 2 * sure.log()).mean()


class Bare:
    """The least that a task can be."""

    dim = 3

    def target(self, batch):
        return F.one_hot(batch.y, 3).to(batch.dtype)

    def loss(self, out, batch):
        return F.cross_entropy(out, batch.y, weight=out.new_tensor(WEIGHTS))

    def metrics(self, out, batch):
        return {"loss": self.loss(out.detach(), batch)}


def own_loss():
    task = Classify(3)
    task.use_loss(lambda out, y: F.multi_margin_loss(out, y))
    return task


VECTORS = {
    "plain": Classify(3),
    "weights": Classify(3, class_weights=WEIGHTS),
    "smoothing": Classify(3, label_smoothing=0.2),
    "both": Classify(3, class_weights=WEIGHTS, label_smoothing=0.2),
    "subclass": Focal(3),
    "own": own_loss(),
    "bare": Bare(),
    "multilabel": Multilabel(3, positive_weights=WEIGHTS, label_smoothing=0.1),
    "shares": Classify(3, class_weights=WEIGHTS, label_smoothing=0.2),
}
HEADS = {
    "local": {},
    "mono_forward": {},
    "pred": {},
    "predsim": {"beta": 0.3},
    "cwcomp": {},
}


def labels(name, n=24):
    generator = torch.Generator().manual_seed(1)
    if name == "multilabel":
        return torch.randint(2, (n, 3), generator=generator).double()
    if name == "shares":
        return torch.rand(n, 3, generator=generator, dtype=torch.float64).softmax(1)
    return torch.randint(3, (n,), generator=generator)


def dense():
    torch.manual_seed(0)
    return NETS["mlp"]((6,), 3, hidden=[8, 7], activation="tanh").double()


def maps():
    torch.manual_seed(0)
    stages = (
        nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(5, 3, 3, padding=1)),
    )
    return nn.Sequential(*stages).double()


def check_local(name, options, net, stages, task, batch):
    """Each hidden segment and its head has the gradient of the task's loss of the head's scores alone."""
    rule = bound(RULES[name](**options), net, batch, task)
    for p in rule.parameters():
        nn.init.normal_(p, std=0.3)
    rule.gradients(net, task, batch, Noise())
    assert len(rule.segments) == len(stages) > 1
    x, target = batch.x, task.target(batch)
    for index, stage in enumerate(stages[:-1]):
        h = stage(x)
        loss = task.loss(rule.scores(index, h), batch)
        if name == "predsim":
            head = rule.heads[index]
            loss = 0.7 * loss + 0.3 * similarity_loss(head.match(h), similarity(target))
        trained = rule.unit(net, index)
        for p, expected in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            torch.testing.assert_close(p.grad, expected)
        x = h.detach()


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("name", HEADS)
def test_hidden_layers_learn_by_the_loss_of_the_task(name, kind):
    task, net = VECTORS[kind], dense()
    batch = Batch(torch.randn(24, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), labels(kind))
    if (kind in ("bare", "multilabel") and name == "cwcomp") or (kind == "bare" and "pred" in name):
        message = "Bare has no attribute 'classes'" if kind == "bare" else "so it cannot predict several labels"
        with pytest.raises(UserError, match=message):
            bound(RULES[name](), net, batch, task)
        return
    stages = [nn.Sequential(nn.Flatten(), net.fc1, net.act1), nn.Sequential(net.fc2, net.act2), net.fc3]
    check_local(name, HEADS[name], net, stages, task, batch)


@pytest.mark.parametrize("name", ["local", "mono_forward", "pred", "cwcomp"])
def test_hidden_layers_learn_the_class_of_each_pixel(name):
    task, net = Segment(3, (8, 8), ignore_index=9, class_weights=WEIGHTS, label_smoothing=0.1), maps()
    y = torch.randint(3, (5, 8, 8), generator=torch.Generator().manual_seed(1))
    y[:, :2] = 9
    batch = Batch(torch.randn(5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), y)
    check_local(name, {}, net, list(net), task, batch)


@pytest.mark.parametrize("name", ["local", "mono_forward", "pred", "cwcomp"])
def test_plain_classes_are_learned_as_ever_to_the_bit(name, batch):
    net = NETS["mlp"]((1, 8, 8), 10, hidden=[24, 16], activation="tanh").to(batch.x.device, batch.x.dtype)
    rule = bound(RULES[name](), net, batch)
    h = torch.randn(len(batch.y), 24, dtype=batch.x.dtype, device=batch.x.device)
    scores, target = rule.scores(0, h), TASK.target(batch)
    assert torch.equal(rule.local_loss(0, h, target), F.cross_entropy(scores, target))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_and_smoothing_are_those_of_torch(weights, smoothing):
    out, y = torch.randn(24, 3, dtype=torch.float64), labels("plain")
    task = Classify(3, class_weights=weights, label_smoothing=smoothing)
    weight = None if weights is None else out.new_tensor(weights)
    expected = F.cross_entropy(out, y, weight, label_smoothing=smoothing)
    torch.testing.assert_close(task.loss(out, Batch(out, y)), expected)
    torch.testing.assert_close(task.loss(out, Batch(out, F.one_hot(y, 3).double())), expected)
    pixels = Segment(3, (4, 6), class_weights=weights, label_smoothing=smoothing, ignore_index=-1)
    out, y = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.randint(-1, 3, (2, 4, 6))
    expected = F.cross_entropy(out, y, weight, label_smoothing=smoothing, ignore_index=-1)
    torch.testing.assert_close(pixels.loss(out, Batch(out, y)), expected)
    torch.testing.assert_close(pixels.loss(out.flatten(1), Batch(out, y)), expected)


@pytest.mark.parametrize("kind", ["weights", "both", "shares"])
def test_the_loss_of_a_split_does_not_depend_on_its_batches(kind):
    x, y, task = torch.randn(24, 3, dtype=torch.float64), labels(kind), VECTORS[kind]
    parts = [Batch(x[a:b], y[a:b]) for a, b in ((0, 3), (3, 17), (17, 24))]
    found, whole = (mean_metrics(task, batches, lambda x: {"": x})[""] for batches in (parts, [Batch(x, y)]))
    assert found == pytest.approx(whole)


@pytest.mark.parametrize("task", [Classify(3, class_weights=WEIGHTS), Segment(3, (8, 8), ignore_index=9)])
def test_parts_of_a_batch_add_up_to_its_gradient(task):
    net = dense() if task.pixels is None else maps()
    x = torch.randn(24, *([6] if task.pixels is None else [1, 8, 8]), dtype=torch.float64)
    y = labels("plain") if task.pixels is None else torch.randint(3, (24, 8, 8))
    if task.pixels is not None:
        y[:10, 1:] = 9
    found = []
    for parts in (1, 3):
        net.zero_grad()
        rule = bound(RULES["backprop"](accumulate=parts), net, Batch(x, y), task)
        loss = rule.gradients(net, task, Batch(x, y), Noise())["loss"]
        found.append([loss, *(p.grad.clone() for p in net.parameters())])
    torch.testing.assert_close(*found)


def test_balanced_weights_count_the_training_samples():
    x, y = torch.randn(40, 4), torch.tensor([0] * 24 + [1] * 10 + [2] * 6)
    spec = {"name": "classify", "class_weights": "balanced"}
    run = bpfree.fit("mlp", (x, y), "local", epochs=1, task=spec, validation=0)
    assert run.task.class_weights.values.tolist() == pytest.approx([40 / (3 * n) for n in (24, 10, 6)])
    run = bpfree.fit("mlp", (x, torch.stack([y == 1, y < 2], 1)), "local", epochs=1, validation=0,
                     task={"name": "multilabel", "positive_weights": "balanced"})  # fmt: skip
    assert run.task.positive_weights.values.tolist() == pytest.approx([30 / 10, 6 / 34])
    with pytest.raises(UserError, match="class 3 has no training sample. Give a list"):
        bpfree.fit("mlp", (x, y), "local", epochs=1, task=spec, classes=4)


def test_a_config_has_the_options_and_a_run_keeps_them(tmp_path):
    config = load_config(
        "digits/local", ["task.name=classify", "task.label_smoothing=0.1", "task.class_weights=balanced"]
    )
    assert config.task == {"name": "classify", "label_smoothing": 0.1, "class_weights": "balanced"}
    run = bpfree.fit("mlp", "digits", "local", epochs=1, task=config.task, augment={"mixup": 0.2}, out=tmp_path / "run")
    loaded = bpfree.load(tmp_path / "run")
    assert torch.equal(loaded.task.class_weights.values, run.task.class_weights.values)
    assert loaded.evaluate((run.test.x, run.test.y)) == run.result["test"]
    spec = {"name": "classify", "class_weights": torch.ones(10)}
    assert bpfree.fit("mlp", "digits", "dfa", epochs=1, task=spec).config.task["class_weights"] == [1.0] * 10


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (name, {"task": {"name": "classify", "class_weights": [1.0] * 10}}, "task.class_weights would not reach all")
        for name in ("drtp", "sim", "forward_forward", "noprop_dt", "noprop_ct", "noprop_hybrid")
    ]
    + [
        ("drtp", {"loss": F.cross_entropy}, "'DRTP' .* a loss of your own would not reach all"),
        ("dfa", {"task": {"name": "classify", "class_weights": [1.0, 2.0]}}, "found 2 numbers, allowed: 10"),
        ("dfa", {"task": {"name": "classify", "class_weights": [-1.0] * 10}}, "allowed: finite numbers from 0 on"),
        ("dfa", {"task": {"name": "classify", "class_weights": "even"}}, "found 'even', allowed: balanced or a list"),
        ("dfa", {"task": {"name": "classify", "label_smoothing": 1}}, "found 1.0, allowed: a number from 0 to below 1"),
        ("dfa", {"task": {"name": "classify", "smooth": 1}}, "Known to Classify: class_weights, label_smoothing"),
        ("dfa", {"loss": "huber"}, "the task classify has one loss only"),
        ("dfa", {"loss": 3}, "loss: found int, allowed: a function"),
        ("dfa", {"loss": lambda out, y: 3.0}, "loss: its value has the type float, allowed: a tensor with one number"),
        ("dfa", {"loss": lambda out, y: out.sum(1)}, "loss: its value has the shape"),
    ],
)
def test_what_a_loss_cannot_be(rule, options, message):
    net = {"name": "denoiser", "blocks": 2} if "noprop" in rule else "mlp"
    with pytest.raises(UserError, match=message) as caught:
        bpfree.fit(net, "digits", rule, epochs=1, **options)
    assert "\n" not in str(caught.value)


def test_a_loss_of_ones_own_trains_and_is_asked_for_again(tmp_path):
    def hinge(out, y):
        return F.multi_margin_loss(out, y)

    run = bpfree.fit("mlp", "digits", "mono_forward", epochs=3, loss=hinge, out=tmp_path / "run")
    assert run.result["test"]["accuracy"] > 0.6
    assert bpfree.fit("mlp", "diabetes", "local", epochs=1, task="regress", loss="mae").task.loss_name == "mae"
    loaded = bpfree.load(tmp_path / "run")
    assert torch.equal(loaded.predict(run.test.x), run.predict(run.test.x))
    with pytest.raises(UserError, match=r"trained with a function from Python. Give it: bpfree.load\(folder, loss="):
        loaded.evaluate((run.test.x, run.test.y))
    loaded = bpfree.load(tmp_path / "run", loss=hinge)
    assert loaded.evaluate((run.test.x, run.test.y)) == run.result["test"]
    with pytest.raises(UserError, match="its loss came from Python"):
        bpfree.api.resume(tmp_path / "run")


def test_shares_of_classes_are_classes():
    """The kind of a task is not guessed from the type of y."""
    run = bpfree.fit("mlp", "digits", {"name": "mono_forward", "read": "sum"}, epochs=3, augment={"mixup": 0.2})
    assert run.result["test"]["accuracy"] > 0.6
    run = bpfree.fit("mlp", "digits", {"name": "es", "objective": "accuracy"}, epochs=1, augment={"mixup": 0.2})
    assert run.result["train"]["loss"] < 0, "a score that is maximised"


def test_a_task_of_ones_own_need_say_no_more_than_a_rule_must_know():
    batch = Batch(torch.randn(8, 6), labels("plain", 8))
    for rule in ("backprop", "dfa", "local", "es"):
        assert Trainer(dense().float(), rule, Bare()).step(batch)["loss"] > 0
    for rule in ("drtp", "forward_forward", "cwcomp"):
        with pytest.raises(UserError, match="Bare has no attribute 'classes', but .* must know what labels are"):
            Trainer(dense().float(), rule, Bare()).step(batch)
    with pytest.raises(UserError, match="read: found 'sum', but the task Bare has no classes, allowed: net"):
        Trainer(dense().float(), {"name": "mono_forward", "read": "sum"}, Bare()).step(batch)

    class Told(Bare):
        classes = 3

    for rule in ("drtp", "forward_forward", "cwcomp", {"name": "mono_forward", "read": "sum"}):
        Trainer(dense().float(), rule, Told()).step(batch)


def test_several_labels_are_not_taken_for_shares():
    batch = Batch(torch.randn(8, 6), torch.ones(8, 3))
    for task in (Classify(3), Focal(3)):
        with pytest.raises(UserError, match='the sum 3.*Use task="multilabel"|For several labels.*task="multilabel"'):
            Trainer(dense().float(), "backprop", task).step(batch)
