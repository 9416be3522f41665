"""The curves and tables of `scale.py`: what the simulator says about 1 to 10,000 ranks."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table
from scale_checks import BUCKET, Work
from scale_model import FLOAT, Cost, Link, Part, Step, by_members, by_rows
from scale_pipeline import denoising_blocks, local_blocks, pipeline
from scale_subjects import SUBJECTS

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
RANKS = [*(2**k for k in range(14)), 10_000]
LINKS = {
    "100 Mbit/s, 20 ms": Link(12.5e6, 0.02, 20e-6),
    "1 Gbit/s, 0.2 ms": Link(125e6, 200e-6, 20e-6),
    "10 Gbit/s, 50 us": Link(1.25e9, 50e-6, 5e-6),
    "400 Gbit/s, 5 us": Link(50e9, 5e-6, 1e-6),
    "3.6 Tbit/s, 2 us": Link(450e9, 2e-6, 1e-6),
}
CORE, GPU = list(LINKS)[:3], list(LINKS)[2:]
SPREAD = 0.02  # standard deviation of a rank's time for the same work; an assumption
OWN_MEMBERS = 64
Approach = Callable[[int, Link], Step]


def approaches(work: Work, net: str) -> dict[str, Approach]:
    """Return the approaches by name; each gives more ranks more samples or members, and every rank the same number.

    Args:
        work: the measured work.
        net: the layered net.
    """
    parts, samples = work.parts[net], SUBJECTS[net].batch
    one, blocks = work.parts["noprop_shared"], SUBJECTS["noprop"].batch
    found: dict[str, Approach] = {
        **layered(parts, samples),
        "NoProp, own trunks": in_stages(partial(denoising_blocks, work.parts["noprop"], blocks, shared=False), 10),
        "NoProp, shared trunk": in_stages(partial(denoising_blocks, one, blocks, shared=True), 10),
    }
    small = sum(part.weights for part in work.parts["small"])
    for name, population in work.populations.items():
        for suffix, weights in ((", scores only", 0), (", sums averaged", small)):
            found[name + suffix] = lambda n, link, population=population, weights=weights: by_members(
                population, OWN_MEMBERS * n, SUBJECTS["small"].batch, n, link, spread=SPREAD, weights=weights
            )
    return found


def layered(parts: Sequence[Part], samples: int) -> dict[str, Approach]:
    """Return the approaches for a net in layers, with as many samples for each rank."""
    return {
        "backprop, rows": lambda n, link: by_rows(
            parts, samples * n, n, link, local=False, bucket=BUCKET, spread=SPREAD
        ),
        "backprop, 1F1B": in_stages(lambda *a, for_update, **k: pipeline(parts, samples / 4, *a, **k), len(parts)),
        "local rule, rows": lambda n, link: by_rows(
            parts, samples * n, n, link, local=True, bucket=BUCKET, spread=SPREAD
        ),
        "local rule, blocks": in_stages(partial(local_blocks, parts, samples), len(parts)),
    }


def in_stages(run: Callable[..., Step], parts: int) -> Approach:
    """Return an approach with the number of stages that is fastest; a step has a batch for each stage.

    Args:
        run: (ranks, link, size=stages, for_update=batches) -> step.
        parts: the largest number of stages.
    """

    def fastest(ranks: int, link: Link) -> Step:
        most = min(ranks, parts)
        some = range(max(1, most // 2), most + 1)
        return max((run(ranks, link, size=size, for_update=size) for size in some), key=lambda step: step.rate)

    return fastest


def on_a_gpu() -> tuple[list[Part], int]:
    """Return the parts of an MLP with eight layers of 4096, and its batch, as an NVIDIA H200 ran them in float32.

    Only whole steps were measured. They are divided among the layers by their products: one forward, one for the
    gradient of the weights, and one for that of the input, which the first layer does not need.
    """
    found = json.loads((ROOT / "benchmarks" / "device-h200.json").read_text())
    rows = found["parts"]["mlp_large"]["tables"]["float32, batch 4096"]
    true, local = (rows[name]["ms"] / 1e3 for name in ("backprop", "mono_forward"))
    layers, width, batch = 8, 4096, 4096
    product = true / (3 * layers - 1) / batch
    learn = (local - layers * product * batch) / layers / batch
    weights = FLOAT * width * (width + 1)
    return [
        Part(
            Cost(0.0, product),
            Cost(0.0, product * (1 if layer == 0 else 2)),
            Cost(0.0, learn),
            0.0,
            weights,
            FLOAT * 10 * width,
            FLOAT * width,
        )
        for layer in range(layers)
    ], batch


def efficiency(approach: Approach, ranks: int, link: Link) -> float:
    """Return the samples per second and rank, divided by those of one rank."""
    return approach(ranks, link).rate / ranks / approach(1, link).rate


def machines(work: Work) -> dict[str, tuple[dict[str, Approach], list[str]]]:
    """Return the approaches on a processor's core and on a GPU, and the links for which they are shown."""
    return {"core": (approaches(work, "deep"), CORE), "GPU": (layered(*on_a_gpu()), GPU)}


def draw(work: Work) -> None:
    """Draw the efficiency over all links, and the traffic."""
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    axes = figure.subplots(2, len(CORE), sharex=True, sharey=True)
    for row, (machine, (some, links)) in zip(axes, machines(work).items(), strict=True):
        for panel, link in zip(row, links, strict=True):
            for place, (name, approach) in enumerate(some.items()):
                values = [efficiency(approach, n, LINKS[link]) for n in RANKS]
                panel.plot(RANKS, values, color=f"C{place}", lw=1.4, label=name)
            panel.set(xscale="log", ylim=(0, 1.05))
            panel.set_title(f"{machine}, {link}", fontsize=9)
        row[0].set_ylabel("speed of a rank, of one alone")
    for panel in axes[-1]:
        panel.set_xlabel("ranks")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(IMAGES / "scale.png", dpi=80, metadata={"Software": None})
    draw_traffic(approaches(work, "deep"))


def draw_traffic(some: dict[str, Approach]) -> None:
    """Draw the bytes that a rank sends for each sample that it computes."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    link = LINKS["10 Gbit/s, 50 us"]
    for place, (name, approach) in enumerate(some.items()):
        steps = [(n, approach(n, link)) for n in RANKS]
        values = [(n, sum(step.sent) / step.samples) for n, step in steps]
        panel.plot(*zip(*values, strict=True), color=f"C{place}", lw=1.4, label=name)
    panel.set(xscale="log", yscale="symlog", xlabel="ranks", ylabel="bytes sent for each sample")
    panel.set_ylim(0, 1e7)
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(IMAGES / "scale_traffic.png", dpi=80, metadata={"Software": None})


def tables(work: Work) -> list[Table]:
    """Return for each machine and link the speed of a rank, in percent of that of one rank alone."""
    shown = [2, 8, 64, 1024, 10_000]
    made = []
    for machine, (some, links) in machines(work).items():
        for link in links:
            table = Table("approach", *map(str, shown), "kB a rank sends, at 64", title=f"{machine}, {link}")
            for name, approach in some.items():
                cells = [f"{100 * efficiency(approach, n, LINKS[link]):.1f}" for n in shown]
                table.add_row(name, *cells, f"{sum(approach(64, LINKS[link]).sent) / 64e3:,.1f}")
            made.append(table)
    return made
