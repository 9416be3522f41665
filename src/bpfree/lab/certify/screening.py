"""The search for other behaviour at other steps and with another number of samples.

A rule may behave in one way at step 0 and in another at step 1000, or with 16 samples and with 128. To measure all
dependencies everywhere would take too long. So the weights of all later parts change at once, and the gradients of the
parts before are compared, for a few places of the border between earlier and later. Only where one of them changes is
everything measured again.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bpfree.lab.certify.bench import STEPS, Bench, Gradients, layers_with
from bpfree.lab.certify.influences import Influences, Pinned, changed_throughout, find_influences
from bpfree.lab.certify.order import Order
from bpfree.lab.certify.pins import MOST_BYTES, Pins
from bpfree.types import Batch

_ODD_AND_LATE = 1001  # the step of the whole batch: one that also shows what depends on the number of the step


class Setting(NamedTuple):
    """The steps and the number of samples of an experiment.

    Attributes:
        steps: numbers of the steps.
        samples: number of samples in the batch.
    """

    steps: tuple[int, ...]
    samples: int

    @staticmethod
    def of(bench: Bench) -> "Setting":
        """Return the setting of a bench."""
        return Setting(tuple(bench.steps), len(bench.batch.y))


def other_benches(bench: Bench, batch: Batch, bytes_of_sample: float) -> list[Bench]:
    """Return benches with other steps, and with the user's whole batch.

    Args:
        bench: the bench with few samples.
        batch: the user's batch.
        bytes_of_sample: bytes of the outputs of all modules for one sample, if they are to be recorded; else 0. The
            batch is cut to as many samples as fit into memory.
    """
    rest = [step for step in STEPS if step not in bench.steps]
    benches = [bench.at(steps=rest)] if rest else []
    samples = len(batch.y)
    if bytes_of_sample:
        samples = min(samples, max(int(MOST_BYTES / bytes_of_sample), len(bench.batch.y)))
    if samples > len(bench.batch.y):
        steps = [_ODD_AND_LATE] if len(bench.steps) == 1 else bench.steps
        benches.append(bench.at(steps=steps, batch=batch.first(samples)))
    return benches


def screened(
    bench: Bench, plain: Gradients, parts: Mapping[str, Sequence[str]], order: Order, *, pinned: bool
) -> Influences:
    """Return what gradients depend on at a bench, if anything there depends on later parts; else nothing.

    Args:
        bench: the bench.
        plain: the gradients of an unchanged run.
        parts: the layers of each part, in order.
        order: the order of the layers.
        pinned: True to hold the values of the forward pass, for a rule whose parts may wait for later ones. Only
            weight transport is looked for then.
    """
    run, pins = changed_throughout(bench), Pins()
    if pinned:
        recorded = Pinned.recorded(bench, changed_throughout)
        bench, run, pins, plain = recorded.bench, recorded.run, recorded.pins, recorded.plain
    layers = list(parts.values())
    for border in sorted({1, len(layers) // 2, len(layers) - 1} - {0, len(layers)}):
        earlier = {layer for part in layers[:border] for layer in part}
        later = [layer for part in layers[border:] for layer in part]
        # Pins that recorded nothing hold nothing.
        moved = layers_with(bench.changed(plain, run(later, "noise", pins.replaying())), bench.layers)
        if moved & earlier:
            return find_influences(bench, plain, order)
    return Influences()
