"""Rules side by side at equal steps and at equal CPU time, from shipped configs.

    python benchmarks/equal.py --steps 400 --seeds 3 --out lm400.json tinyshakespeare/transformer_backprop \
        tinyshakespeare/transformer_solo "tinyshakespeare/transformer_solo rule.depth=2"
    python benchmarks/equal.py --show lm400.json

The first config is the reference. Each row trains for `--steps` steps. With `--cpu` it trains once more, for as many
steps as fit into the CPU time that the reference took; the schedule ends with that number. CPU time is that of the
steps alone, without evaluation. One thread. Metrics are those of the validation split, and of the test split where the
config has no validation. Rows are interleaved, seed by seed, and written to the file as they end; a row that is in the
file already is not trained again.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bpfree.data import Preprocess
from bpfree.runs.assemble import assemble
from bpfree.runs.config_file import load_config
from bpfree.training.evaluation import evaluate_split


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
    for seed in range(options.seeds):
        budget = None
        for row in options.rows:
            found = _trained(record, options, row, seed, options.steps, "steps")
            budget = budget or found["cpu_seconds"]
            if options.cpu and row != options.rows[0]:
                steps = round(options.steps * budget / found["cpu_seconds"])
                _trained(record, options, row, seed, steps, "cpu")
    print(table(record))


def _read(path: Path | None) -> dict[str, Any]:
    if path is not None and path.exists():
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record
    return {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "runs": []}


def _trained(
    record: dict[str, Any], options: argparse.Namespace, row: str, seed: int, steps: int, equal: str
) -> dict[str, Any]:
    """Return a run of the record; it is trained and written if it is not there."""
    key = {"row": row, "seed": seed, "equal": equal}
    for run in record["runs"]:
        if key.items() <= run.items() and (equal == "cpu" or run["steps"] == steps):
            return dict(run)
    run = {**key, **train(row, steps, seed, options.data_dir)}
    record["runs"].append(run)
    if options.out is not None:
        part = options.out.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1), encoding="utf-8")
        os.replace(part, options.out)
    print(f"{row}, seed {seed}: {run['steps']} steps, {run['cpu_seconds']:.0f} CPU s, {run['metrics']}", flush=True)
    return run


def train(row: str, steps: int, seed: int, data_dir: str | None) -> dict[str, Any]:
    """Train a config for a number of steps, and evaluate once at the end.

    Args:
        row: a config with overrides.
        steps: how many steps; the schedule ends with the last.
        seed: of the net, the rule and the order of samples.
        data_dir: where data sets are.
    """
    name, *overrides = row.split()
    place = [f"data.dir={data_dir}"] if data_dir else []
    config = load_config(name, [*overrides, *place, f"train.seed={seed}"])
    config = config.model_copy(update={"schedule": {**config.schedule, "total_steps": steps}})
    if config.schedule["name"] == "constant":
        config = config.model_copy(update={"schedule": {"name": "constant"}})
    dataset = config.data.load()
    training, validation = config.data.split(dataset, seed)
    setup = assemble(config, Preprocess.of(dataset, training))
    trainer, batches = setup.trainer, setup.training_batches(training)
    trainer.bind(next(batches.epoch()))
    trainer.rule.begin(batches, steps=steps, resumed=False)
    seconds = done = epoch = 0
    while done < steps:
        started = time.process_time()
        for batch in batches.epoch(epoch):
            trainer.step(batch)
            done += 1
            if done == steps:
                break
        seconds += time.process_time() - started
        epoch += 1
    split = dataset.test if validation is None else validation
    assert split is not None
    found = evaluate_split(trainer.task, setup.batches(split).epoch(), trainer.predict, trainer.net)
    own = sum(p.numel() for p in trainer.net.parameters())
    heads = sum(p.numel() for p in trainer.rule.parameters())
    metrics = {name: round(float(value), 6) for name, value in found.metrics.items()}
    return {"steps": steps, "cpu_seconds": seconds, "metrics": metrics, "parameters": own, "rule_parameters": heads}


def table(record: dict[str, Any]) -> str:
    """Return the rows of a record as a Markdown table: mean ± standard deviation over seeds."""
    rows = list(dict.fromkeys(run["row"] for run in record["runs"]))
    metric = "accuracy" if "balanced_accuracy" in record["runs"][0]["metrics"] else "loss"
    lines = [
        f"| config | {metric} | steps | CPU s | heads, % | {metric} at equal CPU time | steps |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row]
        for equal in ("steps", "cpu"):
            runs = [run for run in record["runs"] if run["row"] == row and run["equal"] == equal]
            if not runs:
                cells += [""] * 2
                continue
            cells += [
                spread([run["metrics"][metric] for run in runs]),
                f"{statistics.mean(r['steps'] for r in runs):.0f}",
            ]
            if equal == "steps":
                cells.append(f"{statistics.mean(run['cpu_seconds'] for run in runs):.0f}")
                cells.append(f"{100 * runs[0]['rule_parameters'] / runs[0]['parameters']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation, with four decimals."""
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    main()
