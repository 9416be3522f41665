"""Rules that train by the true gradient, or by other weights than they say, and declare that they are as local as DFA.

Each class has another way to hide. `test_cheats.py` requires that none of them gets a certificate.
"""

import copy
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.checkpoint import checkpoint

from bpfree import LocalRule, Rule
from bpfree.grad import add_gradients, output_error
from bpfree.nets import NETS
from bpfree.rule import BLACK_BOX, LOCAL, Locality
from bpfree.rules import RULES
from bpfree.tasks import Classify
from bpfree.types import Batch

CLASSES, INPUTS, HIDDEN = 6, 9, [8, 7, 5]
TASK = Classify(CLASSES)
AS_DFA = Locality(through="part", waits=True, transports="none", memory="grows")

ENGINE = torch.autograd.Variable._execution_engine
"""The engine of autograd, as somebody can keep it from before a certificate is made."""


def tiny_net() -> nn.Sequential:
    """Four linear layers with tanh between them."""
    torch.manual_seed(0)
    return NETS["mlp"]((INPUTS,), CLASSES, hidden=HIDDEN, activation="tanh")


def tiny_batch(samples: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(samples, INPUTS, generator=generator), torch.arange(samples) % CLASSES)


def linear_layers(net: nn.Module) -> list[nn.Linear]:
    return [module for module in net.modules() if isinstance(module, nn.Linear)]


def true_gradients(net: nn.Module, batch: Batch) -> list[Tensor]:
    """The gradients of backprop, computed on detached copies of the weights."""
    own = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    loss = TASK.loss(torch.func.functional_call(net, own, (batch.x,)), batch)
    return list(torch.autograd.grad(loss, list(own.values())))


def loss_of(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        return {"loss": TASK.loss(net(batch.x), batch)}


class Cheat(LocalRule):
    """The base class: it can be bound as a local rule, and declares what DFA declares."""

    declared = AS_DFA

    def locality(self):
        return self.declared

    def local_loss(self, index, h, signal):
        return h.square().mean()

    def gradients(self, net, task, batch, noise):
        add_gradients(net.parameters(), self.write(net, batch, noise))
        return loss_of(net, batch)

    def write(self, net, batch, noise) -> list[Tensor]:
        """Return the gradients of all parameters of the net."""
        return true_gradients(net, batch)


class TheLayerAbove(Cheat):
    """It keeps the gradient of the layer above, and multiplies it by a weight of that layer."""

    needs_error = True
    memory = "fast"
    gradients = LocalRule.gradients

    def bind(self, net, task, batch):
        super().bind(net, task, batch)
        self.layers = linear_layers(net)

    def local_gradient(self, index, h, signal):
        last = index == len(self.taps) - 1
        above = signal if last else self.kept * (1 - self.h.square())
        self.kept, self.h = above @ self.layers[index + 1].weight.detach(), h
        return self.kept


class CopiesOnCopies(Cheat):
    """A closure has a deep copy of the net, which gets the weights at each step."""

    def bind(self, net, task, batch):
        super().bind(net, task, batch)
        twin = copy.deepcopy(net)

        def gradients(net: nn.Module, batch: Batch) -> list[Tensor]:
            twin.load_state_dict(net.state_dict())
            return list(torch.autograd.grad(TASK.loss(twin(batch.x), batch), list(twin.parameters())))

        self.hidden: Callable[..., list[Tensor]] = gradients

    def write(self, net, batch, noise):
        return self.hidden(net, batch)


class FunctionalCopy(Cheat):
    """A functional call of a deep copy, whose own weights never change."""

    def write(self, net, batch, noise):
        twin = copy.deepcopy(net)
        own = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
        loss = TASK.loss(torch.func.functional_call(twin, own, (batch.x,)), batch)
        return list(torch.autograd.grad(loss, list(own.values())))


class FeedbackFollowsTheWeights(RULES["fa"]):
    """Feedback alignment whose B becomes W after each step: the way back is one step late."""

    def gradients(self, net, task, batch, noise):
        scalars = super().gradients(net, task, batch, noise)
        for b, layer in zip(self.buffers(), linear_layers(net), strict=True):
            b.copy_(layer.weight)
        return scalars


class FeedbackFollowsSometimes(RULES["fa"]):
    """Feedback alignment whose B becomes W after each hundredth step."""

    def gradients(self, net, task, batch, noise):
        scalars = super().gradients(net, task, batch, noise)
        if noise.step % 100 == 0:
            for b, layer in zip(self.buffers(), linear_layers(net), strict=True):
                b.copy_(layer.weight)
        return scalars


class FeedbackFollowsByHand(Cheat):
    """Backprop by hand through copies of the weights that it made in the step before, in a list that nobody sees."""

    copies: list[Tensor] | None = None

    def write(self, net, batch, noise):
        now = [layer.weight.detach().clone() for layer in linear_layers(net)]
        back, self.copies = self.copies or now, now
        return by_hand(net, batch, back)


class ErrorOfThePreviousBatch(Cheat):
    """It does not wait for the error of this batch, but uses that of the batch before."""

    declared = LOCAL

    def bind(self, net, task, batch):
        super().bind(net, task, batch)
        self.register_buffer("error", torch.zeros(len(batch.y), CLASSES))
        for index, width in enumerate(HIDDEN):
            self.register_buffer(f"B{index}", torch.randn(CLASSES, width))

    def local_gradient(self, index, h, signal):
        return self.error[: len(h)] @ self.get_buffer(f"B{index}")

    def gradients(self, net, task, batch, noise):
        scalars = LocalRule.gradients(self, net, task, batch, noise)
        with torch.no_grad():
            out = net(batch.x)
        self.error[: len(out)] = output_error(TASK, out, batch)
        return scalars


class GradientOfThePreviousBatch(Cheat):
    """The true gradient of the batch before, kept in buffers."""

    declared = LOCAL

    def bind(self, net, task, batch):
        super().bind(net, task, batch)
        for number, p in enumerate(net.parameters()):
            self.register_buffer(f"g{number}", torch.randn_like(p) / 100)

    def write(self, net, batch, noise):
        kept = [g.clone() for g in self.buffers()]
        for g, new in zip(self.buffers(), true_gradients(net, batch), strict=True):
            g.copy_(new)
        return kept


class WeightsOfTheBinding(Cheat):
    """The way back reads the weights as they were when the rule was bound."""

    def bind(self, net, task, batch):
        super().bind(net, task, batch)
        self.first = [layer.weight.detach().clone() for layer in linear_layers(net)]

    def write(self, net, batch, noise):
        return by_hand(net, batch, self.first)


class WeightsOfTheFirstStep(Cheat):
    """The way back reads the weights as they were in the first step."""

    first: list[Tensor] | None = None

    def write(self, net, batch, noise):
        self.first = self.first or [layer.weight.detach().clone() for layer in linear_layers(net)]
        return by_hand(net, batch, self.first)


class Sometimes(Cheat):
    """Honest feedback alignment by hand, and backprop under a condition."""

    def bind(self, net, task, batch):
        super().bind(net, task, batch)
        self.random = [torch.randn_like(layer.weight) for layer in linear_layers(net)]

    def cheats(self, batch: Batch, step: int) -> bool:
        return False

    def write(self, net, batch, noise):
        true = [layer.weight.detach() for layer in linear_layers(net)]
        return by_hand(net, batch, true if self.cheats(batch, noise.step) else self.random)


class OddSteps(Sometimes):
    """Backprop at odd steps."""

    def cheats(self, batch, step):
        return step % 2 == 1


class LaterSteps(Sometimes):
    """Backprop from step 500 on."""

    def cheats(self, batch, step):
        return step >= 500


class LargeBatches(Sometimes):
    """Backprop for more than 16 samples."""

    def cheats(self, batch, step):
        return len(batch.y) > 16


class LargeBatchesInLaterSteps(Sometimes):
    """Backprop for more than 16 samples, and only in odd steps from step 500 on."""

    def cheats(self, batch, step):
        return len(batch.y) > 16 and step >= 500 and step % 2 == 1


class EachThirdCall(Sometimes):
    """Backprop in each third call, whatever the number of the step."""

    calls = 0

    def cheats(self, batch, step):
        self.calls += 1
        return self.calls % 3 == 0


class HookOfOptimisers(Cheat):
    """It writes random gradients; a hook of all optimisers replaces them by the true ones."""

    handle = None

    def bind(self, net, task, batch):
        super().bind(net, task, batch)
        self.undo()

        def replace(optimizer, args, kwargs):
            for p, gradient in zip(net.parameters(), true_gradients(net, self.seen), strict=True):
                p.grad = gradient

        type(self).handle = register_optimizer_step_pre_hook(replace)

    def undo(self):
        if type(self).handle is not None:
            type(self).handle.remove()

    def write(self, net, batch, noise):
        self.seen = batch
        return [torch.ones_like(p) for p in net.parameters()]


class MovesTheWeights(Cheat):
    """It writes random gradients, and moves the weights by itself."""

    def write(self, net, batch, noise):
        for p, gradient in zip(net.parameters(), true_gradients(net, batch), strict=True):
            p.data.sub_(0.1 * gradient)
        return [torch.zeros_like(p) for p in net.parameters()]


class HookOfTensors(Cheat):
    """Hooks of the parameters put the true gradients in the place of local ones."""

    def gradients(self, net, task, batch, noise):
        true = true_gradients(net, batch)
        handles = [p.register_hook(lambda g, t=t: t) for p, t in zip(net.parameters(), true, strict=True)]
        scalars = LocalRule.gradients(self, net, task, batch, noise)
        for handle in handles:
            handle.remove()
        return scalars


class HookOfModules(Cheat):
    """Hooks of modules keep inputs and send errors back, so that the net is never differentiated as a whole."""

    def gradients(self, net, task, batch, noise):
        layers, inputs = linear_layers(net), {}
        handles = [
            layer.register_forward_hook(lambda layer, args, out: inputs.__setitem__(layer, args[0].detach()))
            for layer in layers
        ]
        with torch.no_grad():
            out = net(batch.x)
        for handle in handles:
            handle.remove()
        d = output_error(TASK, out, batch)
        for layer in reversed(layers):
            add_gradients([layer.weight, layer.bias], [d.T @ inputs[layer], d.sum(0)])
            d = (d @ layer.weight.detach()) * (1 - inputs[layer] ** 2)
        return {"loss": TASK.loss(out, batch)}


class EngineOfAutograd(Cheat):
    """It calls the engine in C++ by a name that it kept, past all of torch's functions."""

    def gradients(self, net, task, batch, noise):
        loss = TASK.loss(net(batch.x), batch)
        ENGINE.run_backward((loss,), (torch.ones(()),), False, False, (), allow_unreachable=True, accumulate_grad=True)
        return {"loss": loss.detach()}


class ReentrantCheckpoint(Cheat):
    """The cuts work in the forward pass; the backward pass of a checkpoint runs the net again without them."""

    def gradients(self, net, task, batch, noise):
        x = batch.x.clone().requires_grad_()
        loss = TASK.loss(checkpoint(net, x, use_reentrant=True), batch)
        loss.backward()
        return {"loss": loss.detach()}


class AnotherThread(Cheat):
    """Backprop in another thread."""

    def gradients(self, net, task, batch, noise):
        found = []
        thread = threading.Thread(target=lambda: found.extend(true_gradients(net, batch)))
        thread.start()
        thread.join()
        add_gradients(net.parameters(), found)
        return loss_of(net, batch)


class FunctionalGrad(Cheat):
    """Backprop by `torch.func.grad`."""

    def write(self, net, batch, noise):
        def loss(own: dict[str, Tensor]) -> Tensor:
            return TASK.loss(torch.func.functional_call(net, own, (batch.x,)), batch)

        return list(torch.func.grad(loss)({name: p.detach() for name, p in net.named_parameters()}).values())


class ForwardMode(Cheat):
    """The true gradient by forward mode, a direction for each weight."""

    def write(self, net, batch, noise):
        def loss(own: dict[str, Tensor]) -> Tensor:
            return TASK.loss(torch.func.functional_call(net, own, (batch.x,)), batch)

        own = {name: p.detach() for name, p in net.named_parameters()}
        return list(torch.func.jacfwd(loss)(own).values())


class _Smuggle(torch.autograd.Function):
    """Zero, with any gradient."""

    @staticmethod
    def forward(ctx, h, gradient):
        ctx.gradient = gradient
        return h.new_zeros(())

    @staticmethod
    def backward(ctx, *grads):
        return ctx.gradient(), None


class SmuggledBackward(Cheat):
    """The local loss is zero, and the backward pass of its autograd function is the error of the whole net."""

    needs_error = True
    memory = "fast"

    def gradients(self, net, task, batch, noise):
        self.layers = linear_layers(net)
        return LocalRule.gradients(self, net, task, batch, noise)

    def local_loss(self, index, h, signal):
        def gradient() -> Tensor:
            values = [h.detach()]
            for layer in self.layers[index + 1 : -1]:
                values.append(torch.tanh(values[-1] @ layer.weight.detach().T + layer.bias.detach()))
            d = signal @ self.layers[-1].weight.detach()
            for layer, value in zip(self.layers[-2:index:-1], values[:0:-1], strict=True):
                d = (d * (1 - value.square())) @ layer.weight.detach()
            return d

        return _Smuggle.apply(h, gradient)


def by_hand(net: nn.Module, batch: Batch, back: list[Tensor], *, modules: bool = True) -> list[Tensor]:
    """Backprop by matrix products whose way back goes through the matrices `back`."""
    layers, values = linear_layers(net), [batch.x]
    with torch.no_grad():
        for layer in layers:
            a = layer(values[-1]) if modules else values[-1] @ layer.weight.T + layer.bias
            values.append(a if layer is layers[-1] else torch.tanh(a))
        out = values.pop()
        d = _error(out, batch)
        found: list[Tensor] = []
        for b, h in zip(reversed(back), reversed(values), strict=True):
            found = [d.T @ h, d.sum(0), *found]
            d = (d @ b) * (1 - h * h)
    return found


def _error(out: Tensor, batch: Batch) -> Tensor:
    return (out.softmax(1) - TASK.target(batch)) / len(out)


class SecondNet(Cheat):
    """The net learns as by DRTP, and a second net that nobody sees learns by backprop and predicts."""

    declared = LOCAL
    gradients = LocalRule.gradients

    def bind(self, net, task, batch):
        super().bind(net, task, batch)
        self.second = [copy.deepcopy(net)]  # in a list, where no module is looked for

    def learn_output(self, task, out, batch):
        (second,) = self.second
        for p, gradient in zip(second.parameters(), true_gradients(second, batch), strict=True):
            p.data.sub_(0.1 * gradient)
        return super().learn_output(task, out, batch)

    def predict(self, net, x):
        return self.second[0](x)


class TrainedWhenBound(Cheat):
    """It trains the net by backprop when it is bound, and after that it is local."""

    declared = LOCAL
    gradients = LocalRule.gradients

    def bind(self, net, task, batch):
        super().bind(net, task, batch)
        for p, gradient in zip(net.parameters(), true_gradients(net, batch), strict=True):
            p.data.sub_(0.1 * gradient)


class OnePart(Rule):
    """Plain backprop, which calls the whole net a part."""

    def locality(self):
        return LOCAL

    def gradients(self, net, task, batch, noise):
        loss = TASK.loss(net(batch.x), batch)
        loss.backward()
        return {"loss": loss.detach()}


class OneSegment(RULES["mono_forward"]):
    """A local rule with a single segment, which is the whole net."""

    def __init__(self):
        super().__init__(taps=[])


class ByHand(Cheat):
    """Backprop by matrix products, with the values of the net's own modules."""

    def write(self, net, batch, noise):
        return by_hand(net, batch, [layer.weight.detach() for layer in linear_layers(net)])


class ByHandAsABlackBox(ByHand):
    """The same, and it declares that it differentiates nothing, which is even true."""

    declared = BLACK_BOX


class ByHandOutsideOfModules(Cheat):
    """The same, without one call of a module, so that no value can be held."""

    def write(self, net, batch, noise):
        return by_hand(net, batch, [layer.weight.detach() for layer in linear_layers(net)], modules=False)


class ByHandWithAScalar(ByHand):
    """The loss that it returns changes with the weights, as if values could not be held."""

    def gradients(self, net, task, batch, noise):
        weights = sum(layer.weight.detach().sum() for layer in linear_layers(net))
        return super().gradients(net, task, batch, noise) | {"loss": weights}


class Numpy(Rule):
    """Backprop in numpy, as a black box."""

    def locality(self):
        return BLACK_BOX

    def gradients(self, net, task, batch, noise):
        layers = linear_layers(net)
        weights = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in layers]
        values = [batch.x.flatten(1).numpy()]
        for number, (w, b) in enumerate(weights):
            a = values[-1] @ w.T + b
            values.append(a if number == len(weights) - 1 else np.tanh(a))
        out = torch.from_numpy(values.pop())
        d = ((out.softmax(1) - task.target(batch)) / len(out)).numpy()
        for layer, (w, _), h in zip(reversed(layers), reversed(weights), reversed(values), strict=True):
            add_gradients([layer.weight, layer.bias], [torch.from_numpy(d.T @ h), torch.from_numpy(d.sum(0))])
            d = (d @ w) * (1 - h * h)
        return {"loss": task.loss(out, batch)}


CHEATS: tuple[type[Rule], ...] = (
    TheLayerAbove,
    CopiesOnCopies,
    FunctionalCopy,
    FeedbackFollowsTheWeights,
    FeedbackFollowsSometimes,
    FeedbackFollowsByHand,
    ErrorOfThePreviousBatch,
    GradientOfThePreviousBatch,
    WeightsOfTheBinding,
    WeightsOfTheFirstStep,
    OddSteps,
    LaterSteps,
    LargeBatches,
    LargeBatchesInLaterSteps,
    EachThirdCall,
    HookOfOptimisers,
    MovesTheWeights,
    HookOfTensors,
    HookOfModules,
    EngineOfAutograd,
    ReentrantCheckpoint,
    AnotherThread,
    FunctionalGrad,
    ForwardMode,
    SmuggledBackward,
    SecondNet,
    TrainedWhenBound,
    OnePart,
    OneSegment,
    ByHand,
    ByHandAsABlackBox,
    ByHandOutsideOfModules,
    ByHandWithAScalar,
    Numpy,
)
