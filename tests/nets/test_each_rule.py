"""Each rule trains the Transformer, the nets of patches and the ResNets of CIFAR, or says why it does not."""

import pytest
import torch

from bpfree import Trainer, UserError
from bpfree.nets import NETS
from bpfree.population.rule import BlackBoxRule
from bpfree.rules import RULES
from bpfree.tasks import Classify, Sequence
from bpfree.types import Batch

B = 6
GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randint(5, (B, 6), generator=GENERATOR)
NUMBERS = torch.rand(B, 6, 3, generator=GENERATOR)
IMAGES = torch.rand(B, 1, 8, 8, generator=GENERATOR)
LABELS = torch.arange(B) % 4
SMALL = {"width": 8, "depth": 2, "heads": 2}
CASES = {
    "tokens": ("transformer", {**SMALL, "vocabulary": 5}, Classify(4), Batch(TOKENS, LABELS)),
    "rows": ("transformer", {**SMALL, "norm": "layer", "pool": "mean"}, Classify(4), Batch(IMAGES, LABELS)),
    "each step": ("transformer", {**SMALL, "each_step": True}, Sequence(3), Batch(NUMBERS, NUMBERS.roll(-1, 1))),
    "vit": ("vit", SMALL, Classify(4), Batch(IMAGES, LABELS)),
    "mixer": ("mixer", {"width": 8, "depth": 2}, Classify(4), Batch(IMAGES, LABELS)),
    "resnet32": ("resnet32", {"width": 4}, Classify(4), Batch(IMAGES, LABELS)),
}
SEVERAL = "trainable Linear or convolution, allowed: one"
REFUSED: dict[str, dict[str, str]] = {
    "tokens": {"forward_forward": "samples are torch.int64", "pepita": "samples are of type torch.int64"},
    "each step": {name: "cannot predict sequences" for name, rule in RULES.items() if "sequence" not in rule.tasks},
    **{key: {"pepita": SEVERAL} for key in ("rows", "vit", "mixer", "resnet32")},
}
"""By case, rules that refuse it, each with a part of the reason."""


@pytest.mark.filterwarnings("ignore:drtp")  # features of these nets have no bound
@pytest.mark.parametrize(
    ("case", "rule"),
    [
        (case, name)
        for case in CASES
        for name, rule in RULES.items()
        # Black-box rules only compute outputs, so they see little of a net. They take as long as all others together.
        if rule.needs_net is None and (case == "tokens" or not issubclass(rule, BlackBoxRule))
    ],
)
def test_each_rule_trains_it_or_says_why_not(case, rule):
    name, options, task, batch = CASES[case]
    torch.manual_seed(0)
    net = NETS[name](tuple(batch.x.shape[1:]), task.dim, **options)
    trainer = Trainer(net, rule, task, {"name": "sgd", "lr": 0.01})
    if why := REFUSED.get(case, {}).get(rule):
        with pytest.raises(UserError, match=why):
            trainer.step(batch)
        return
    before = [p.detach().clone() for p in net.parameters()]
    assert trainer.step(batch)["loss"].isfinite()
    assert any(not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    assert all(p.isfinite().all() for p in net.parameters())
    assert trainer.predict(batch.x).isfinite().all()


@pytest.mark.parametrize("case", ["tokens", "vit", "mixer"])
def test_a_traced_program_takes_batches_of_any_size(case):
    name, options, task, batch = CASES[case]
    torch.manual_seed(0)
    net = NETS[name](tuple(batch.x.shape[1:]), task.dim, **options).eval()
    with torch.no_grad():
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(net, (batch.x[:3],), dynamic_shapes=shapes, strict=False).module()
        torch.testing.assert_close(program(batch.x), net(batch.x))
