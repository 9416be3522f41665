"""Embeddings of labels and of what is to be rebuilt."""

import pytest
import torch

import bpfree
from bpfree import Batch, Noise, Trainer, UserError
from bpfree.diffusion.embeddings import EMBEDDINGS, Images, Learned, OneHot, Prototype
from bpfree.nets import Denoiser
from bpfree.rules import NoPropDT
from bpfree.runs.config import parse
from bpfree.tasks import Classify, Reconstruct
from tests.helpers import IN_SHAPE, TASK, same

pytestmark = pytest.mark.usefixtures("undrawn", "at_once")

DIM = {"one_hot": 10, "learned": 20, "prototype": 64}


def make(name, scale=1.5):
    return EMBEDDINGS[name](TASK, DIM[name], 64, scale=scale).double()


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_label_has_its_row_and_is_the_nearest_to_it(name, batch):
    embedding = make(name).to(batch.device)
    u = embedding(batch)
    assert u.shape == (32, DIM[name])
    assert torch.equal(u, embedding.weight[batch.y])
    assert torch.equal(embedding.nearest(u).argmax(1), batch.y)
    z = torch.randn(7, DIM[name], dtype=torch.float64).to(batch.device)
    distances = torch.cdist(z, embedding.weight)
    assert torch.equal(embedding.nearest(z).argsort(1), distances.argsort(1, descending=True))


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_expectations_over_labels(name):
    embedding = make(name)
    scores = torch.randn(5, 10, dtype=torch.float64)
    torch.testing.assert_close(embedding.combined(scores), scores @ embedding.weight)
    torch.testing.assert_close(embedding.expected(scores), scores.softmax(1) @ embedding.weight)
    certain = torch.full((1, 10), -1e3, dtype=torch.float64)
    certain[0, 3] = 0
    torch.testing.assert_close(embedding.expected(certain)[0], embedding.weight[3])


def test_one_hot_is_fixed_and_the_others_learn():
    assert list(OneHot(TASK, 10, 64).parameters()) == []
    assert torch.equal(OneHot(TASK, 10, 64, scale=2.0).weight, 2 * torch.eye(10))
    for kind in (Learned, Prototype):
        assert len(list(kind(TASK, 64, 64).parameters())) == 1
    rows = Learned(TASK, 20, 64, scale=1.5).weight
    torch.testing.assert_close(rows @ rows.T, 2.25 * torch.eye(10))


def test_long_rows_count_as_shortened():
    embedding = Learned(TASK, 20, 64, scale=3.0, norm_clip=2.0)
    torch.testing.assert_close(embedding.weight.norm(dim=1), torch.full((10,), 2.0))
    with torch.no_grad():
        embedding.table *= 0.1
    assert torch.equal(embedding.weight, embedding.table)


def test_a_prototype_starts_at_the_sample_of_its_class_in_the_middle(digits_data):
    x, y = digits_data.train.x.double(), digits_data.train.y
    embedding = Prototype(Classify(11), 64, 64, scale=0.5).double()
    before = embedding.table[10].clone()
    embedding.begin(Batch(x[i : i + 100], y[i : i + 100]) for i in range(0, len(y), 100))
    for label in range(10):
        own = x[y == label].flatten(1)
        medians = [float((own - sample).norm(dim=1).median()) for sample in own]
        torch.testing.assert_close(embedding.table[label], 0.5 * own[medians.index(min(medians))])
    assert torch.equal(embedding.table[10], before), "a class without samples"


def test_a_training_begins_from_prototypes_and_a_resume_does_not(tmp_path):
    net = {"name": "denoiser", "blocks": 2, "width": 16, "embedding_dim": 64}
    rule = {"name": "noprop_dt", "embedding": "prototype"}
    states = []
    for interrupted in (False, True):
        out = tmp_path / str(interrupted)
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                bpfree.fit(net, "digits", rule, epochs=4, out=out, trackers=[_Stop()])
        run = bpfree.fit(net, "digits", rule, epochs=4, out=out, resume=True)
        states.append({**run.net.state_dict(), **run.trainer.rule.state_dict()})
    assert same(*states)


class _Stop(bpfree.Tracker):
    def on_epoch(self, trainer, record):
        if record["epoch"] == 2:
            self.stop = True

    def on_step(self, trainer, batch):
        if getattr(self, "stop", False):
            raise KeyboardInterrupt


def test_learned_embeddings_have_a_weight_decay_of_their_own(batch):
    net = Denoiser(IN_SHAPE, 10, blocks=2, width=16, embedding_dim=20).to(batch.x)
    rule = NoPropDT(embedding={"name": "learned", "weight_decay": 1e-7})
    optimizer = {"name": "adamw", "weight_decay": 0.1}
    trainer = Trainer(net, rule, TASK, optimizer)
    trainer.step(batch)
    decays = {id(p): g["weight_decay"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert decays.pop(id(rule.embedding.table)) == 1e-7
    assert set(decays.values()) == {0.1}
    own = torch.optim.AdamW(net.parameters(), weight_decay=0.2)
    rule = NoPropDT(embedding={"name": "learned", "weight_decay": 1e-7})
    Trainer(net, rule, TASK, own).step(batch)
    decays = {id(p): g["weight_decay"] for g in own.param_groups for p in g["params"]}
    assert decays[id(rule.embedding.table)] == 1e-7


@pytest.mark.parametrize("output", ["sigmoid", "tanh", "linear"])
def test_an_image_is_its_own_embedding(output):
    task = Reconstruct((1, 2, 2), output=output)
    embedding = Images(task, 4, 4, scale=2.0)
    out = Noise().randn(3, 4, dtype=torch.float64)
    image = task.activate(out)
    assert torch.equal(embedding(Batch(image, image)), 2 * image)
    torch.testing.assert_close(embedding.expected(out), 2 * image)
    torch.testing.assert_close(embedding.nearest(embedding.expected(out)), out)
    beyond = embedding.nearest(torch.full((1, 4), 9.0))
    assert bool(beyond.isfinite().all())


def test_widths_that_do_not_fit_are_refused(batch):
    for options, message in (
        ({}, r"width 7, but one-hot labels have 10. Use net.embedding_dim=10"),
        ({"embedding": "prototype"}, r"width 7, but prototypes are samples, with 64 values. Use net.embedding_dim=64"),
    ):
        with pytest.raises(UserError, match=message):
            NoPropDT(**options).bind(
                Denoiser(IN_SHAPE, 10, blocks=2, width=8, embedding_dim=7).to(batch.x), TASK, batch
            )


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ("lerned", "unknown embedding 'lerned'. Did you mean 'learned'"),
        ({"name": "one_hot", "norm_clip": 2}, "unknown key 'embedding.norm_clip'"),
        ({"name": "learned", "norm_clip": "long"}, "embedding.norm_clip: found 'long', allowed: number or none"),
        ({"scale": 2}, "embedding.name: found None"),
    ],
)
def test_what_no_embedding_takes_is_refused_when_the_config_is_read(embedding, message):
    with pytest.raises(UserError, match=message):
        parse({"rule": {"name": "noprop_dt", "embedding": embedding}})


def test_labels_and_images_have_embeddings_of_their_own(batch):
    net = Denoiser(IN_SHAPE, 10, blocks=2, width=8).to(batch.x)
    with pytest.raises(UserError, match="unknown embedding 'image'.*one_hot"):
        NoPropDT(embedding="image").bind(net, TASK, batch)
    with pytest.raises(UserError, match="unknown embedding 'learned'.*image"):
        NoPropDT(embedding="learned").bind(net, Reconstruct(IN_SHAPE), Batch(batch.x, batch.x))
    with pytest.raises(UserError, match=r"embedding.scale: found -1.0, allowed: a number above 0"):
        NoPropDT(embedding={"name": "one_hot", "scale": -1}).bind(net, TASK, batch)
