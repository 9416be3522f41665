import pytest
import torch

from bpfree import Trainer
from bpfree.training.precision import _error, _switch, fast_float32, keeps_accuracy
from tests.helpers import TASK, net_for


def test_products_keep_float32_accuracy():
    """Whatever the processor, and at shapes that the start-up check does not look at."""
    with fast_float32():
        for shape in [(7, 3, 5), (64, 1024, 10), (500, 900, 300), (1, 4096, 4096)]:
            assert _error(*shape) < 2e-6


def test_the_switch_is_put_back():
    if _switch() is None:
        pytest.skip("this torch has no such switch")
    before = _switch().fp32_precision
    with fast_float32():
        assert (_switch().fp32_precision != before) == keeps_accuracy()
    assert _switch().fp32_precision == before
    with pytest.raises(ZeroDivisionError), fast_float32():
        1 / 0  # noqa: B018
    assert _switch().fp32_precision == before


def test_training_leaves_torch_as_it_was(batch):
    before = getattr(_switch(), "fp32_precision", None)
    trainer = Trainer(net_for("backprop", batch.x.device, torch.float32), "backprop", TASK)
    trainer.step(batch._replace(x=batch.x.float()))
    trainer.predict(batch.x.float())
    assert getattr(_switch(), "fp32_precision", None) == before
