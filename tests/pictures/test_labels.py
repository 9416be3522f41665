"""Labels that do not cover each other, and axes whose numbers do not."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bpfree.pictures.labels import Named, label_ends, label_points, labelled_panel, spread
from bpfree.pictures.plots import plot_tracked, plot_training
from bpfree.pictures.scales import log_ticks, range_of_curves, value_scale


def boxes(figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    return {text.get_text(): text.get_window_extent(renderer) for text in figure.texts}


def check_apart(found):
    for name, box in found.items():
        for other, second in found.items():
            assert name == other or not box.overlaps(second), f"{name} and {other}"


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_labels_at_the_ends_of_lines_that_end_at_one_point(count):
    names = [f"rule {n}" for n in range(count)]
    figure, axes = labelled_panel(names)
    axes.set_xlim(0, 1)
    value_scale(axes, "y", 0, 1)
    label_ends(axes, [Named(1.0, 0.5, name, "#0072B2") for name in names])
    found = boxes(figure)
    assert set(found) == set(names)
    check_apart(found)
    assert max(box.x1 for box in found.values()) <= figure.bbox.x1
    assert min(box.y0 for box in found.values()) >= 0


def test_labels_are_in_the_order_of_their_lines_and_as_near_as_possible():
    assert spread(np.array([1.0, 4.0, 9.0]), 0, 10, 2).tolist() == [1, 4, 9], "no label moves without need"
    crowd = spread(np.array([5.0, 5.0, 5.0]), 0, 10, 2)
    assert crowd.tolist() == [3, 5, 7], "around their common place"
    assert spread(np.array([9.5, 9.6, 9.7]), 0, 10, 2).tolist() == [6, 8, 10], "within the panel"


def test_labels_beside_points_that_lie_close_together():
    figure, axes = labelled_panel([])
    axes.set(xlim=(0, 1), ylim=(0, 1))
    places = np.random.default_rng(0).normal(0.5, 0.08, (30, 2))
    label_points(axes, [Named(x, y, f"rule {n}", "black") for n, (x, y) in enumerate(places)], radius=3)
    found = boxes(figure)
    assert len(found) == 30
    check_apart(found)
    dots = axes.transData.transform(places)
    assert not [name for name, box in found.items() if any(box.contains(*dot) for dot in dots)]


@pytest.mark.parametrize(("low", "high"), [(0.8, 30), (1, 1.5), (1e-9, 1e9), (0.5, 0.500001), (3, 70_000)])
def test_a_logarithmic_axis_has_few_numbers_within_its_limits(low, high):
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)


def test_the_first_epochs_of_the_worst_curve_do_not_set_the_axis():
    good, bad = [0.5, 0.4, 0.2, 0.2, 0.1], [9.0, 0.6, 0.5, 0.4, 0.4]
    assert range_of_curves([good, bad]) == (0.1, 0.6)
    assert range_of_curves([bad]) == (0.4, 9.0), "one curve is shown whole"
    assert range_of_curves([good[:4], bad[:4]]) == (0.2, 9.0), "and so are short ones"


def test_one_epoch_shows_two_dots_that_differ(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("bpfree.pictures.plots.write_figure", lambda figure, path: drawn.append(figure) or path)
    plot_training([{"epoch": 1, "train": {"loss": 1.0}, "validation": {"loss": 1.0}}], tmp_path / "x.png")
    train, validation = drawn[0].axes[0].lines
    assert train.get_markersize() > validation.get_markersize()
    assert train.get_markerfacecolor() == "none"
    assert train.get_color() != validation.get_color()


def test_memory_is_shown_in_megabytes_without_an_offset(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("bpfree.pictures.plots.write_figure", lambda figure, path: drawn.append(figure) or path)
    values = [{"samples_per_second": 100.0 + n, "peak_memory_bytes": 5e8 + 1e3 * n} for n in range(3)]
    records = [{"tracker": "cost", "step": n, "values": each} for n, each in enumerate(values)]
    plot_tracked(records, tmp_path)
    memory = drawn[0].axes[1]
    assert memory.get_ylabel() == "peak memory, MB"
    assert memory.lines[0].get_ydata()[0] == pytest.approx(500)
    FigureCanvasAgg(drawn[0]).draw()
    assert memory.yaxis.get_offset_text().get_text() == ""
