"What is taken for what."
import numpy as np
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from ctseg.core.anatomy import ClassMap
from ctseg.report.confusion import confusion, heat_table, sides

MASKS = arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 3))


@settings(max_examples=40, deadline=None)
@given(MASKS, MASKS)
def test_confusion_is_its_definition(pred, truth):
    table = confusion(pred, truth, 3)
    for c in (1, 2, 3):
        rows = [[(p[t == c] == k).mean() for k in range(4)] for p, t in zip(pred, truth) if (t == c).any()]
        assert np.allclose(table[c - 1], np.mean(rows, 0)) if rows else np.isnan(table[c - 1]).all()


def test_sides_tell_a_swap():
    classes = ClassMap.from_names(["disc_left", "disc_right", "bar"])
    truth = np.zeros((1, 4, 4), np.uint8)
    truth[0, 0], truth[0, 3] = 1, 2
    swapped = sides(confusion(classes.swap[truth].astype(np.uint8), truth, 3), classes)
    assert [(s["name"], s["own"], s["other"]) for s in swapped] == [("disc_left", 0, 1), ("disc_right", 0, 1)]


def test_a_column_is_shown_if_anything_was_taken_for_it():
    table = np.full((4, 5), np.nan)
    table[1] = [.5, 0, .4, .1, 0]
    table[2] = [1, 0, 0, 0, .009]
    assert heat_table(table) == {"columns": [0, 2, 3], "rows": [(2, [.5, .4, .1]), (3, [1, 0, 0])]}
