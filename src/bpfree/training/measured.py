"""Memory and floating-point operations of a training step, measured without learning."""

import logging

import torch

from bpfree.grad import trainable
from bpfree.memory import peak_step_memory
from bpfree.nets.unchanged import unchanged
from bpfree.rule import Flops
from bpfree.training.stepper import Stepper
from bpfree.types import Batch

log = logging.getLogger(__name__)


class MeasuredStepper(Stepper):
    """A Stepper that can tell what a step takes. The net is afterwards as it was before."""

    def step_memory(self, batch: Batch, *, with_gradients: bool = True) -> int:
        """Return the peak of bytes that the rule takes for one batch, beyond parameters and optimiser state.

        The net learns nothing: weights and buffers are afterwards as they were before. Gradients are cleared. See
        `bpfree.memory` for how bytes are counted.

        Args:
            batch: the batch.
            with_gradients: True to count gradients, as they come into being. False to allocate them before, so that
                only activations and temporary tensors count.
        """
        self.bind(batch)
        updater = self._after_bind("step_memory")
        batch = self._batch_in_order(batch)
        updater.zero_grad()
        with self.arithmetic():
            pass  # the first use checks the processor by products of its own, which are not part of a step
        if not with_gradients:
            for p in trainable(self.net, self.rule):
                p.grad = torch.zeros_like(p)

        def gradients() -> None:
            with self.arithmetic(), updater.during_gradients(learn=False):
                self.rule.gradients(self.net, self.task, batch, self.noise.fold("memory"))

        with unchanged(self.net):
            self.net.train()
            peak = peak_step_memory(gradients, self.device)
        updater.zero_grad()
        return peak

    def flops(self, batch: Batch) -> Flops | None:
        """Return the floating-point operations of a training step for a sample: those of the net and of the heads.

        Products of matrices, convolutions and attention count. The net learns nothing; gradients are cleared.

        Args:
            batch: a batch of the training.

        Returns:
            None if the rule has no heads, if several processes train different parts, or if the net cannot be counted.
        """
        self.bind(batch)
        updater = self._after_bind("flops")
        if self.mesh.apart is not None:
            return None
        updater.zero_grad()
        try:
            with unchanged(self.net), self.arithmetic(), updater.during_gradients(learn=False):
                self.net.train()
                flops = self.rule.flops(self.net, self.task, self._batch_in_order(batch), self.noise.fold("flops"))
        except (RuntimeError, NotImplementedError, TypeError) as error:  # a finished training must not be lost for it
            log.info("operations were not counted: %s", error)
            return None
        finally:
            updater.zero_grad()
        return flops and Flops(flops.net / len(batch.y), flops.heads / len(batch.y))
