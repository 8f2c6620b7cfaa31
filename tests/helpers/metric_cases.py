"The metric's definition, and small and hostile masks for it."
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def literal(pred, truth, C):
    "Mean over images for each class, then over classes; NaN if neither has the class."
    table = [[float("nan")]*C for _ in truth]
    for n in range(len(truth)):
        for c in range(1, C + 1):
            a, b = pred[n] == c, truth[n] == c
            if a.sum() or b.sum(): table[n][c - 1] = 2*(a & b).sum()/(a.sum() + b.sum())
    means = []
    for c in range(C):
        column = [row[c] for row in table if row[c] == row[c]]
        if column: means.append(sum(column)/len(column))
    return np.array(table).reshape(len(truth), C), sum(means)/len(means) if means else float("nan")


@st.composite
def cases(draw, known=False):
    C, n, h, w = (
        draw(st.integers(1, 6)),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
    )
    masks = hnp.arrays(np.uint8, (n, h, w), elements=st.one_of(st.just(0), st.integers(0, C)))
    out = draw(masks), draw(masks), C
    return (*out, draw(hnp.arrays(bool, (n, C)))) if known else out
