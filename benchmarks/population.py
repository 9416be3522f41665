"""A generation of a population: CPU milliseconds, compared with inference, evotorch and EvoX; peak memory.

    python benchmarks/population.py [--net mlp|conv] [--population 64] [--batch 256] [--rounds 7]

One thread, one minibatch of MNIST-sized random images that all members see, cross-entropy. A generation is all there is
to a step: noise, scores, gradients; peers update their parameters too. Subjects take turns; the median of the rounds.
Plain inference runs all population x batch samples without noise or losses, in one batch or minibatch by minibatch,
whichever is faster. Convolutions lie channels last in memory, as our runs have them; peers take none that do. evotorch
(its SupervisedNE, and vectorised through its flat functional interface) and EvoX (OpenES on its
SupervisedLearningProblem, which runs members under vmap) are left out where they are not installed: `make peers`.
Memory is counted at torch's allocator, with the gradients; that of plain inference is one batch of one member.
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from bpfree.memory import peak_step_memory
from bpfree.nets import conv, mlp
from bpfree.noise import Noise
from bpfree.rules import RULES
from bpfree.tasks import Classify
from bpfree.training.allocator import keep_freed_memory
from bpfree.types import Batch

CLASSES = 10
NETS = {
    "mlp": lambda: mlp((1, 28, 28), CLASSES, hidden=[64]),
    "conv": lambda: conv((1, 28, 28), CLASSES, channels=[16, 32], kernel=5, hidden=None),
}
OURS = {
    "eggroll, lowrank": ("eggroll", "lowrank"),
    "eggroll, loop": ("eggroll", "loop"),
    "eggroll, vmap": ("eggroll", "vmap"),
    "eggroll, auto": ("eggroll", "auto"),
    "es, loop": ("es", "loop"),
    "es, vmap": ("es", "vmap"),
    "es, auto": ("es", "auto"),
}


def ours(rule_name: str, evaluator: str, net: nn.Module, batch: Batch, population: int) -> Callable[[], object]:
    """Return one generation of a rule of bpfree."""
    task = Classify(CLASSES)
    rule = RULES[rule_name](population=population, evaluator=evaluator)
    rule.bind(net, task, batch)
    steps = iter(range(10**9))

    def generation() -> object:
        for p in net.parameters():
            p.grad = None
        return rule.gradients(net, task, batch, Noise(0, next(steps)))

    return generation


def plain(net: nn.Module, batch: Batch, population: int) -> Callable[[], object]:
    """Return plain inference on all samples, in one batch or in slices."""
    many = batch.x.repeat(population, 1, 1, 1)

    @torch.no_grad()
    def at_once() -> object:
        return net(many)

    @torch.no_grad()
    def in_slices() -> object:
        return [net(batch.x) for _ in range(population)]

    return min((at_once, in_slices), key=lambda run: statistics.median(milliseconds(run) for _ in range(3)))


def evotorch_supervised(net: nn.Module, batch: Batch, population: int) -> Callable[[], object]:
    """Return a generation of SNES on evotorch's SupervisedNE."""
    from evotorch.algorithms import SNES
    from evotorch.neuroevolution import SupervisedNE

    data = torch.utils.data.TensorDataset(batch.x, batch.y)
    problem = SupervisedNE(data, lambda: net, F.cross_entropy, minibatch_size=len(batch.y), common_minibatch=True)
    return SNES(problem, popsize=population, stdev_init=0.02).step


def evotorch_vectorised(net: nn.Module, batch: Batch, population: int) -> Callable[[], object]:
    """Return a generation of evotorch's SNES on a vectorised fitness, with members under vmap."""
    from evotorch import Problem
    from evotorch.algorithms import SNES
    from evotorch.decorators import vectorized
    from evotorch.neuroevolution.net import ModuleExpectingFlatParameters

    flat = ModuleExpectingFlatParameters(net)
    score = torch.func.vmap(lambda parameters: F.cross_entropy(flat(parameters, batch.x), batch.y))

    @vectorized
    def fitness(members: torch.Tensor) -> torch.Tensor:
        return score(members)

    problem = Problem("min", fitness, solution_length=flat.parameter_length, initial_bounds=(-0.1, 0.1))
    return SNES(problem, popsize=population, stdev_init=0.02).step


def evox_openes(net: nn.Module, batch: Batch, population: int) -> Callable[[], object]:
    """Return a generation of OpenES on EvoX's SupervisedLearningProblem."""
    from evox.algorithms import OpenES
    from evox.problems.neuroevolution.supervised_learning import SupervisedLearningProblem
    from evox.utils import ParamsAndVector
    from evox.workflows import StdWorkflow

    adapter = ParamsAndVector(net)
    centre = adapter.to_vector(dict(net.named_parameters())).detach()
    loss = nn.CrossEntropyLoss(reduction="none")
    problem = SupervisedLearningProblem(net, [(batch.x, batch.y)], loss, n_batch_per_eval=-1, pop_size=population)
    algorithm = OpenES(population, centre, learning_rate=0.01, noise_stdev=0.02, optimizer="adam")
    workflow = StdWorkflow(algorithm, problem, solution_transform=adapter)
    return torch.no_grad()(workflow.step)


PEERS = {
    "evotorch, SupervisedNE": ("evotorch", evotorch_supervised),
    "evotorch, vectorised": ("evotorch", evotorch_vectorised),
    "EvoX, OpenES": ("evox", evox_openes),
}


def milliseconds(run: Callable[[], object]) -> float:
    """Return the CPU time of one call in milliseconds."""
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    """Measure all subjects and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=NETS, default="mlp")
    parser.add_argument("--population", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    batch = Batch(torch.randn(options.batch, 1, 28, 28), torch.randint(CLASSES, (options.batch,)))

    def laid_out() -> nn.Module:
        return NETS[options.net]().to(memory_format=torch.channels_last)

    net = laid_out()
    subjects = {"plain inference": plain(net, batch, options.population)}
    subjects |= {name: ours(*what, laid_out(), batch, options.population) for name, what in OURS.items()}
    for name, (package, make) in PEERS.items():
        if find_spec(package):
            subjects[name] = make(NETS[options.net](), batch, options.population)
    spent: dict[str, list[float]] = {name: [] for name in subjects}
    for round_ in range(options.rounds + 2):
        for name, run in subjects.items():
            taken = milliseconds(run)
            if round_ > 1:  # the first two warm up
                spent[name].append(taken)
    with torch.no_grad():
        memory = {"plain inference": peak_step_memory(lambda: net(batch.x))}
    memory |= {name: peak_step_memory(subjects[name]) for name in OURS}
    parameters = sum(p.numel() for p in net.parameters())
    title = f"{options.net}, {parameters:,} parameters, P {options.population}, B {options.batch}"
    table = Table("subject", "CPU ms", "times plain inference", "peak MB", title=title)
    floor = statistics.median(spent["plain inference"])
    for name, values in spent.items():
        median = statistics.median(values)
        peak = f"{memory[name] / 1e6:.1f}" if name in memory else ""
        table.add_row(name, f"{median:.2f}", f"{median / floor:.2f}", peak)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
