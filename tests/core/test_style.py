"Pictures: what is painted, what is left grey, and what a legend names."
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from ctseg.core import style
from ctseg.core.anatomy import ClassMap

CLASSES = ClassMap.from_names(["liver", "kidney_left", "kidney_right"])
IMAGE = np.full((8, 8), 100, np.uint8)
MASK = np.zeros((8, 8), np.uint8)
MASK[:4], MASK[6:] = 1, 3


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def legend(fig): return [text.get_text() for text in fig.legends[0].get_texts()]


def test_an_overlay_colours_structures_alone():
    picture = style.overlay(IMAGE, MASK, CLASSES, opacity=.5)
    assert picture.shape == (8, 8, 3) and picture.dtype == np.uint8
    assert (picture[MASK == 0] == 100).all()
    for c in (1, 3): assert (picture[MASK == c] == (50 + .5*CLASSES.colours[c]).astype(np.uint8)).all()
    assert (style.overlay(IMAGE*10., MASK*0, CLASSES) == 255).all()  # too bright is white, not wrapped around


def test_legends_name_what_is_there():
    fig, axes = style.image_grid(2, 3)
    assert axes.shape == (2, 3) and not len(axes[0, 0].get_xticks())
    style.class_legend(fig, CLASSES, MASK)
    assert legend(fig) == ["liver", "kidney_right"]
    other, _ = style.image_grid(1, 1)
    style.class_legend(other, CLASSES)
    assert legend(other) == list(CLASSES.names)
    empty, _ = style.image_grid(1, 1)
    style.class_legend(empty, CLASSES, MASK*0)
    assert not empty.legends


def test_masks_in_rows():
    fig = style.plot_masks(
        np.stack([IMAGE]*2),
        {"truth": np.stack([MASK]*2), "prediction": np.stack([MASK*0]*2)},
        CLASSES,
        ["a.png", "b.png"],
    )
    assert [ax.get_title() for ax in fig.axes[:3]] == ["image", "truth", "prediction"]
    assert [fig.axes[i].get_ylabel() for i in (0, 3)] == ["a.png", "b.png"]
    assert legend(fig) == ["liver", "kidney_right"]


def test_the_three_states_have_a_number_and_a_colour():
    states = style.states_of(present=np.array([[True, False, False]]), known=np.array([[True, True, False]]))
    assert states.tolist() == [[style.PRESENT, style.ABSENT, style.UNKNOWN]] and states.dtype == np.uint8
    assert [list(style.STATE_COLOURS)[s] for s in states[0]] == ["present", "absent", "unknown"]
    fig, axes = style.image_grid(1, 1)
    style.show_states(axes[0, 0], states)
    style.state_legend(fig)
    drawn = axes[0, 0].images[0]
    colours = [matplotlib.colors.to_hex(drawn.cmap(drawn.norm(s))) for s in states[0]]
    assert colours == [style.STATE_COLOURS[name] for name in ("present", "absent", "unknown")]


@pytest.mark.parametrize("classes", [3, 54])
def test_nothing_is_clipped(classes):
    "The legend lies inside the figure, below the panels, which keep their size."
    many = ClassMap.from_names([f"structure_with_a_name_{i}" for i in range(classes)])
    fig, axes = style.image_grid(1, 4)
    style.class_legend(fig, many)
    fig.canvas.draw()
    box, panel = fig.legends[0].get_window_extent(), axes[0, 0].get_window_extent()
    assert box.y0 >= 0 and box.y1 <= panel.y0 + 1
    assert box.x0 >= 0 and box.x1 <= fig.bbox.x1
    assert panel.height > 2*fig.dpi
