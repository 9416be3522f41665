"""SoftHebb's features beside random ones: the authors' first convolution on a part of CIFAR-10.

    python benchmarks/softhebb.py --data-dir DATA [--seeds 0 1 2] [--fraction 0.1] [--epochs 10]

The net is the first block of Journe et al. 2023 with their first weights, of length 25: 96 channels of 5x5, the
activation relu(u - mean u)^0.7 and max pooling. SoftHebb trains the convolution without labels: one epoch, batches of
10, plain SGD of 0.08, t = 1. In the control the convolution stays random. Then the convolution is frozen, and a linear
layer is trained by Adam in both, on features of equal scale (batch norm). One thread; the test accuracy is that of all
10,000 test images.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import bpfree
from bpfree.rules import SoftHebb

CHANNELS = 96
FIRST_LENGTH = 25.0  # of a weight; SoftHebb shortens it to 1


class Triangle(nn.Module):
    """relu(u - mean u)^p, the mean over channels."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, u: Tensor) -> Tensor:
        """Return features [B, C, H, W] of responses u [B, C, H, W]."""
        return (u - u.mean(1, keepdim=True)).relu() ** self.power


def make_net(seed: int) -> nn.Sequential:
    """Return the block and the classifier, with first weights that depend on the seed alone."""
    torch.manual_seed(seed)
    convolution = nn.Conv2d(3, CHANNELS, 5, padding=2, padding_mode="reflect", bias=False)
    fan_in = convolution.weight[0].numel()
    nn.init.normal_(convolution.weight, std=FIRST_LENGTH / fan_in**0.5)
    block = nn.Sequential(nn.BatchNorm2d(3, affine=False), convolution, Triangle(0.7), nn.MaxPool2d(4, 2, 1))
    classifier = [nn.BatchNorm2d(CHANNELS, affine=False), nn.Flatten(), nn.Dropout(0.5), nn.Linear(CHANNELS * 256, 10)]
    return nn.Sequential(block, nn.Sequential(*classifier))


def learn_features(net: nn.Sequential, data: dict[str, str], fraction: float, seed: int) -> None:
    """Train the convolution by SoftHebb, and put the classifier back to its first weights."""
    classifier = {key: value.clone() for key, value in net[1].state_dict().items()}
    sgd = {"name": "sgd", "lr": 0.08}
    rule = SoftHebb(t=1.0, taps=["0"])
    bpfree.fit(net, data, rule, epochs=1, optimizer=sgd, batch_size=10, fraction=fraction, validation=0, seed=seed)
    net[1].load_state_dict(classifier)


def accuracy(net: nn.Sequential, data: dict[str, str], fraction: float, epochs: int, seed: int) -> float:
    """Train the classifier on the features as they are, and return the test accuracy."""
    options = {"batch_size": 64, "fraction": fraction, "validation": 0, "seed": seed, "freeze": ["0.*"]}
    adam = {"name": "adam", "lr": 1e-3}
    run = bpfree.fit(net, data, "shallow", epochs=epochs, optimizer=adam, schedule={"name": "cosine"}, **options)
    return float(run.result["test"]["accuracy"])


def main() -> None:
    """Train both for each seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="the folder of the data sets; CIFAR-10 is read from it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fraction", type=float, default=0.1, help="of the training images")
    parser.add_argument("--epochs", type=int, default=10, help="of the classifier")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = {"name": "cifar10", "dir": options.data_dir}
    table = Table(title=f"fraction {options.fraction}, {options.epochs} epochs, one thread, torch {torch.__version__}")
    for heading in ("convolution", "test accuracy, %", "mean", "std", "weight length", "CPU s"):
        table.add_column(heading, justify="left" if heading == "convolution" else "right")
    for name in ("softhebb", "random"):
        start, scores, lengths = time.process_time(), [], []
        for seed in options.seeds:
            net = make_net(seed)
            if name == "softhebb":
                learn_features(net, data, options.fraction, seed)
            lengths.append(float(net[0][1].weight.detach().flatten(1).norm(dim=1).mean()))
            scores.append(100 * accuracy(net, data, options.fraction, options.epochs, seed))
        std = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        each = " ".join(f"{score:.2f}" for score in scores)
        seconds = f"{(time.process_time() - start) / len(scores):.0f}"
        table.add_row(name, each, f"{statistics.mean(scores):.2f}", std, f"{statistics.mean(lengths):.2f}", seconds)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
