"""Rules side by side at equal steps and at equal CPU time, from shipped configs.

    python benchmarks/equal.py --steps 400 --seeds 3 --out lm400.json tinyshakespeare/transformer_backprop \
        tinyshakespeare/transformer_solo "tinyshakespeare/transformer_solo rule.depth=2"
    python benchmarks/equal.py --show lm400.json

The first config is the reference. Each row trains for `--steps` steps. With `--cpu` it trains once more, for as many
steps as take the CPU time of the reference; the schedule ends with that number. What a step costs is measured first:
the reference and the row take turns, step by step, so that other work on the machine slows both. One thread. Metrics
are those of the validation split, and of the test split where the config has no validation. Rows are interleaved, seed
by seed, and written to the file as they end; a row that is in the file already is not trained again.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bpfree.data import Preprocess
from bpfree.runs.assemble import assemble
from bpfree.runs.config_file import load_config
from bpfree.training.evaluation import evaluate_split
from bpfree.types import Batch

WARM, PAIRS = 3, 30  # steps that do not count, and steps that do


def main() -> None:
    """Train all rows, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help='a config, or "config key=value ..."')
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="also at equal CPU time")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path, help="print the table of a file, and train nothing")
    options = parser.parse_args()
    if options.show:
        print(table(json.loads(options.show.read_text(encoding="utf-8"))))
        return
    torch.set_num_threads(1)
    record = _read(options.out)
    for row in options.rows:
        if row not in record["costs"]:
            record["costs"][row] = cost(options.rows[0], row, options.data_dir)
            _write(options.out, record)
            print(f"{row}: a step takes {record['costs'][row]:.2f} of the reference's CPU time", flush=True)
    for seed in range(options.seeds):
        for row in options.rows:
            _trained(record, options, row, seed, options.steps, "steps")
            if options.cpu and row != options.rows[0]:
                _trained(record, options, row, seed, round(options.steps / record["costs"][row]), "cpu")
    print(table(record))


def _read(path: Path | None) -> dict[str, Any]:
    if path is not None and path.exists():
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record
    machine = platform.processor() or platform.machine()
    return {"machine": machine, "torch": torch.__version__, "costs": {}, "runs": []}


def _write(path: Path | None, record: dict[str, Any]) -> None:
    if path is not None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1), encoding="utf-8")
        os.replace(part, path)


def _trained(record: dict[str, Any], options: argparse.Namespace, row: str, seed: int, steps: int, equal: str) -> None:
    """Train and write a run, unless it is in the record."""
    key = {"row": row, "seed": seed, "equal": equal, "steps": steps}
    if any(key.items() <= run.items() for run in record["runs"]):
        return
    training = Training(row, steps, seed, options.data_dir)
    seconds = sum(training.step() for _ in range(steps))
    run = {**key, "cpu_seconds": seconds, **training.judged()}
    record["runs"].append(run)
    _write(options.out, record)
    print(f"{row}, seed {seed}: {steps} steps, {seconds:.0f} CPU s, {run['metrics']}", flush=True)


def cost(reference: str, row: str, data_dir: str | None) -> float:
    """Return the CPU time of a step of a row, divided by that of the reference; they take turns."""
    if row == reference:
        return 1.0
    pair = [Training(name, WARM + PAIRS, 0, data_dir) for name in (reference, row)]
    seconds = [[training.step() for training in pair] for _ in range(WARM + PAIRS)]
    of_reference, of_row = (sum(column) for column in zip(*seconds[WARM:], strict=True))
    return of_row / of_reference


class Training:
    """The training of a config for a number of steps, step by step.

    Args:
        row: a config with overrides.
        steps: how many steps; the schedule ends with the last.
        seed: of the net, the rule and the order of samples.
        data_dir: where data sets are.
    """

    def __init__(self, row: str, steps: int, seed: int, data_dir: str | None) -> None:
        name, *overrides = row.split()
        place = [f"data.dir={data_dir}"] if data_dir else []
        config = load_config(name, [*overrides, *place, f"train.seed={seed}"])
        constant = config.schedule["name"] == "constant"
        schedule = {"name": "constant"} if constant else {**config.schedule, "total_steps": steps}
        config = config.model_copy(update={"schedule": schedule})
        dataset = config.data.load()
        training, validation = config.data.split(dataset, seed)
        self.setup = assemble(config, Preprocess.of(dataset, training))
        self.split = dataset.test if validation is None else validation
        batches = self.setup.training_batches(training)
        self.trainer = self.setup.trainer
        self.trainer.bind(next(batches.epoch()))
        self.trainer.rule.begin(batches, steps=steps, resumed=False)
        self.batches = _all_epochs(batches)

    def step(self) -> float:
        """Take a step, and return its CPU seconds; those of its batch are included."""
        started = time.process_time()
        self.trainer.step(next(self.batches))
        return time.process_time() - started

    def judged(self) -> dict[str, Any]:
        """Return metrics, and the numbers of parameters of the net and of the rule."""
        trainer = self.trainer
        assert self.split is not None
        batches = self.setup.batches(self.split).epoch()
        found = evaluate_split(trainer.task, batches, trainer.predict, trainer.net)
        return {
            "metrics": {name: round(float(value), 6) for name, value in found.metrics.items()},
            "parameters": sum(p.numel() for p in trainer.net.parameters()),
            "rule_parameters": sum(p.numel() for p in trainer.rule.parameters()),
        }


def _all_epochs(batches: Any) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def table(record: dict[str, Any]) -> str:
    """Return the rows of a record as a Markdown table: mean ± standard deviation over seeds."""
    rows = list(record["costs"])
    metric = "accuracy" if "balanced_accuracy" in record["runs"][0]["metrics"] else "loss"
    lines = [
        f"| config | {metric} | CPU time of a step | heads, % of the parameters | {metric} at equal CPU time | steps |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        runs = {
            equal: [r for r in record["runs"] if (r["row"], r["equal"]) == (row, equal)] for equal in ("steps", "cpu")
        }
        cells = [row, "", f"{record['costs'][row]:.2f}", "", "", ""]
        if runs["steps"]:
            cells[1] = spread([run["metrics"][metric] for run in runs["steps"]])
            cells[3] = f"{100 * runs['steps'][0]['rule_parameters'] / runs['steps'][0]['parameters']:.0f}"
        if runs["cpu"]:
            cells[4] = spread([run["metrics"][metric] for run in runs["cpu"]])
            cells[5] = f"{runs['cpu'][0]['steps']}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation, with four decimals."""
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    main()
