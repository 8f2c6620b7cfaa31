"""The drawing stays what it was: areas and grey values of every class, kept in golden.json.

On one machine the same seed gives the same bytes. Another processor may round a cosine differently, so a few
pixels at edges may change; a changed table, draw or formula moves far more. After an intended change of the
drawing, write the file anew: python tests/phantom/test_golden.py
"""
import json
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import RAIDIUM54
from ctseg.phantom import hide_labels, phantom_slices
from ctseg.phantom.anatomy import whole_body
from ctseg.phantom.cut import view
from ctseg.phantom.painting import paint_slice

KEPT = Path(__file__).with_name("golden.json")
CUTS = [(seed, "coronal", (0, y, 390), 1100) for seed in (0, 3) for y in (-40, 10, 60)] + [
    (1, "axial", (0, 4, z), 400) for z in (820, 340, 90)
]


def areas() -> dict:
    "Pixels and mean HU of each class in each cut."
    seen = {}
    for seed, kind, at, fov in CUTS:
        hu, label = paint_slice(view(whole_body(seed), kind, at, fov, 96))
        for i in np.unique(label[label > 0]):
            seen[f"{RAIDIUM54.name(i)}, {kind} {at} of {seed}"] = [
                int((label == i).sum()),
                round(float(hu[label == i].mean()), 2),
            ]
    return seen


def slices() -> dict:
    "Mean grey, drawn pixels, pixels left by the annotators, and patient of some slices."
    world = phantom_slices(10, size=48, seed=[4, 1])
    shown = hide_labels(world, seed=5)
    return {
        name: [round(float(image.mean()), 2), int((mask > 0).sum()), int((left > 0).sum()), int(group)]
        for name, image, mask, left, group in zip(
            world.names, world.images, world.masks, shown.masks, world.groups
        )
    }


def test_classes_are_where_they_were():
    kept, now = json.loads(KEPT.read_text())["areas"], areas()
    big = {key for key in kept | now if max(kept.get(key, [0])[0], now.get(key, [0])[0]) > 3}
    assert big <= kept.keys() & now.keys()
    for key in big:
        assert (
            abs(kept[key][0] - now[key][0]) <= 2 and abs(kept[key][1] - now[key][1]) < 3 + 60/kept[key][0]
        ), key


def test_slices_are_what_they_were():
    kept, now = json.loads(KEPT.read_text())["slices"], slices()
    assert kept.keys() == now.keys()
    for name, (grey, drawn, shown, group) in kept.items():
        assert (
            abs(grey - now[name][0]) < .3
            and abs(drawn - now[name][1]) <= 5
            and abs(shown - now[name][2]) <= 5
            and group == now[name][3]
        ), name


if __name__ == "__main__":
    KEPT.write_text(json.dumps({"areas": areas(), "slices": slices()}, indent=0) + "\n")
