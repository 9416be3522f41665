"""Numbers of a comparison: differences from the right baseline, answers that are kept, times, and the printed table."""

import json
from itertools import count

import numpy as np
import pytest
import torch

from bpfree.cli.compared import table
from bpfree.data.split import Split
from bpfree.lab.compare.answers import add_answers, answers
from bpfree.lab.compare.measure import compare_with_baselines, default_target, time_to_target
from bpfree.lab.compare.page import write_comparison
from bpfree.lab.statistics import holm, pack, paired_difference
from tests.lab.records import record


def row(name, scores, *, net="mlp", metric="accuracy", bits=None, **more):
    """A row of backprop if its name begins so; otherwise one that is compared with the row "backprop"."""
    runs = [
        {"seed": n, "score": s, "metric": metric, "split": "test", "curve": [[1, 10.0, s / 2], [2, 20.0, s]]}
        for n, s in enumerate(scores)
    ]
    for run, right in zip(runs, bits if bits is not None else [None] * len(runs), strict=True):
        run |= {"right": None if right is None else pack(right), "samples": None if right is None else len(right)}
    is_backprop = name.startswith("backprop")
    role = {"kind": "baseline" if is_backprop else "rule", "baseline": "" if is_backprop else "backprop", "net": net}
    mean = sum(scores) / max(len(scores), 1)
    costs = {"cpu_seconds": 1.0, "step_memory_bytes": 4.5e5, "parameters": 3_289_956, "rule_parameters": 0}
    values = {"metric": metric, "mean": mean, "std": 0.01, "notes": []} | role | costs
    return {"name": name, "runs": runs} | values | more


def with_bits(name, probability, seeds=3, samples=400, **more):
    rng = np.random.default_rng(sum(map(ord, name)))
    bits = rng.random((seeds, samples)) < probability
    return row(name, bits.mean(1), bits=bits, **more), bits


def test_differences_are_those_of_the_answers_to_the_same_samples_with_the_same_seed():
    (dfa, ours), (backprop, theirs), (pepita, _) = (
        with_bits(name, p) for name, p in (("dfa", 0.8), ("backprop", 0.9), ("pepita", 0.88))
    )
    assert compare_with_baselines([dfa, backprop, pepita]) is backprop
    expected = paired_difference(ours, theirs)
    assert (dfa["baseline"], dfa["seeds_compared"]) == ("backprop", 3)
    assert dfa["difference"] == pytest.approx(dfa["mean"] - backprop["mean"])
    assert dfa["interval"] == pytest.approx(expected.interval)
    assert dfa["p"] == expected.p
    assert [dfa["p_holm"], pepita["p_holm"]] == holm([dfa["p"], pepita["p"]])
    assert dfa["verdict"] == "worse"
    assert not {"baseline", "difference", "verdict"} & backprop.keys()
    json.dumps([dfa, backprop])
    backprop["runs"].pop(0)
    compare_with_baselines([dfa, backprop])
    few = row("few", [0.9], bits=ours[2:])
    few["runs"][0]["seed"] = 2
    compare_with_baselines([few, backprop])
    assert few["difference"] == pytest.approx(0.9 - theirs[2].mean(), abs=0.2)
    assert few["verdict"] == "too few seeds"
    assert "interval" not in few
    assert few["interval_of_nets"] == pytest.approx(paired_difference(ours[2:], theirs[2:]).nets)


def test_losses_are_compared_over_the_seeds_and_smaller_is_better():
    rule = row("dfa", [0.31, 0.30, 0.32, 0.31], metric="loss")
    baseline = row("backprop", [0.41, 0.42, 0.41, 0.40], metric="loss")
    compare_with_baselines([rule, baseline])
    expected = paired_difference(*(np.array([run["score"] for run in r["runs"]]) for r in (rule, baseline)))
    assert (rule["p"], rule["verdict"]) == (expected.p, "better")
    two = row("dfa", [0.31, 0.30], metric="loss")
    compare_with_baselines([two, baseline])
    assert two["verdict"] == "too few seeds"
    assert not {"interval", "interval_of_nets", "p"} & two.keys()


def test_a_row_is_compared_with_backprop_on_its_net_alone():
    rows = [
        row("backprop", [0.9] * 3),
        row("backprop, checkpointed", [0.9] * 3, baseline="backprop"),
        row("dfa", [0.8, 0.7, 0.8]),
        row("backprop_conv", [0.95] * 3, net="conv"),
        row("noprop", [0.99, 0.98, 0.97], net="conv", baseline="backprop_conv"),
        row("alone", [0.99] * 3, net="vgg", baseline=""),
        row("failed", []),
    ]
    assert compare_with_baselines(rows) is rows[0]
    assert [r.get("baseline") for r in rows] == [None, "backprop", "backprop", None, "backprop_conv", None, "backprop"]
    assert "difference" not in rows[5]
    assert rows[4]["difference"] == pytest.approx(0.03)
    assert compare_with_baselines([row("dfa", [0.5])]) is None
    missing = row("dfa", [0.5], baseline="backprop (failed)")
    compare_with_baselines([missing, row("backprop", [0.7])])
    assert "difference" not in missing


def test_answers_are_computed_once(tmp_path):
    """A run that compare.json has is not predicted again, unless it was trained again since."""
    split = Split(torch.zeros(9, 2), torch.tensor([0, 1, 2] * 3))
    loaded = count()

    class Loaded:
        def predict(self, x):
            next(loaded)
            return torch.zeros(len(x), dtype=torch.int64)

    def add(run, test, root=tmp_path):
        add_answers([run], test, root, lambda folder: Loaded())

    def fresh(**change):
        run = {"folder": "runs/a-0", "metric": "accuracy", "split": "test", "score": 1 / 3, "wall_seconds": 0.1}
        return run | change

    def record(run):
        (tmp_path / "compare.json").write_text(json.dumps({"groups": [{"rows": [{"runs": [run]}]}]}))

    first = fresh()
    add(first, lambda: split)
    assert answers(first).tolist() == (split.y == 0).tolist()
    record(first)
    again = fresh()
    add(again, lambda: pytest.fail("the data were loaded again"))
    assert (again, next(loaded)) == (first, 1)
    add(fresh(wall_seconds=0.2), lambda: split)
    record(first | {"right": "damaged"})
    add(fresh(), lambda: split)
    assert next(loaded) == 4
    for run, y in ((fresh(metric="loss"), split.y), (fresh(split="validation"), split.y), (fresh(), split.y[:, None])):
        add(run, lambda y=y: Split(split.x, y), tmp_path / "other")
        assert (run["right"], run["samples"], answers(run)) == (None, None, None)


def test_seconds_to_a_target_and_the_target_itself():
    rows = [row("backprop", [0.8, 0.8]), row("dfa", [0.8, 0.7])]
    assert default_target(rows[0]) == pytest.approx(0.76)
    time_to_target(rows, 0.76, "accuracy")
    assert (rows[0]["seconds_to_target"], rows[0]["reached_target"]) == (20.0, 2)
    assert rows[1]["reached_target"] == 1
    assert "seconds_to_target" not in rows[1]
    falling = [row("backprop", [0.5], metric="loss")]
    time_to_target(falling, 0.3, "loss")
    assert falling[0]["seconds_to_target"] == 10.0


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_table_fits_with_whole_numbers_and_each_net_begins_with_its_baseline(metric):
    rows = [
        row("noprop_dt", [0.99, 0.97, 0.98], net="conv", baseline="backprop_conv", metric=metric),
        row("dfa", [0.2, 0.1, 0.15], metric=metric, seconds_to_target=12.3),
        row("backprop", [0.9, 0.91, 0.92], metric=metric),
        row("backprop, checkpointed", [0.9, 0.91, 0.92], baseline="backprop", metric=metric),
        row("backprop_conv", [0.98, 0.97, 0.96], net="conv", metric=metric),
        row("es", [], metric=metric),
    ]
    compare_with_baselines(rows)
    group = {"name": "mlp", "rows": rows, "config": {"data": {}}}
    for width in (100, 80):
        lines = table(group, width)
        text = [line.plain for line in lines]
        assert max(map(len, text)) <= width
        assert [line.split()[0] for line in text[4:]] == [
            *("backprop_conv", "noprop_dt", "net:", "backprop", "backprop,", "dfa", "es")
        ]
        assert "12.3" in text[9] or width == 80
        assert "3,289,956" in text[9] or "3.3M" in text[9]
        (worse,) = [line for line in lines if line.style == ("red" if metric == "accuracy" else "green")]
        assert worse.plain.startswith("dfa")
        assert "]*" in worse.plain
        assert sum("*" in line for line in text) == 1
        assert text[-1].endswith("not trained")


def test_what_heads_add_is_shown_where_a_rule_has_them(tmp_path):
    """In the records of tests heads have 34,000 parameters of 118,282, and 210,000 operations beside 470,000."""
    for rules, are_there in ((("dfa", "mono_forward"), True), (("dfa", "drtp"), False)):
        made = record(rules)
        printed = "\n".join(line.plain for line in table(made["groups"][0], 300))
        page = write_comparison(made, tmp_path / "report.html").read_text("utf-8")
        assert ("29 / 45" in printed, "heads, %" in printed, "heads 29 / 45 %" in page) == (are_there,) * 3
