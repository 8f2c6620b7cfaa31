"A body is complete and the right way round, and a region leaves the others alone."
import numpy as np
import pytest

from ctseg.core.anatomy import RAIDIUM54
from ctseg.phantom.anatomy import REGIONS, whole_body
from ctseg.phantom.body import Body
from ctseg.phantom.chest import CHEST
from ctseg.phantom.cut import view
from ctseg.phantom.head import HEAD_AND_NECK
from ctseg.phantom.limbs import LIMBS
from ctseg.phantom.painting import paint_slice

ID = {n: RAIDIUM54.id(n) for n in RAIDIUM54.names}


def test_a_region_of_the_body_leaves_the_others_alone():
    whole, part = whole_body(4), Body(4, [*LIMBS, CHEST[0], HEAD_AND_NECK[0]])
    assert (
        whole.patient.traits.scale == part.patient.traits.scale
    ).all() and whole.patient.hu == part.patient.hu
    lung = [[p for p in body.parts if p.label == ID["lung_left"]][0] for body in (whole, part)]
    assert (lung[0].atoms[0].low == lung[1].atoms[0].low).all()
    assert len({region.stream for region in REGIONS}) == len(REGIONS)


def test_every_class_occurs(world):
    missing = [n for n, seen in zip(RAIDIUM54.names, world.present.any(0)) if not seen]
    whole = whole_body(0)
    for y in range(-70, 100, 12):  # what 120 slices may lack, frontal cuts of one body must have
        label = paint_slice(view(whole, "coronal", (0, y, 390), 1100, 256))[1]
        missing = [n for n in missing if not (label == ID[n]).any()]
    assert not [n for n in missing if n != "gallbladder" or whole.patient.traits.has_gallbladder]
    assert world.present.any(0).sum() >= 50


@pytest.mark.parametrize("seed", range(6))
def test_left_is_left_and_a_mirror_is_a_vertical_flip(seed):
    body, seen = whole_body(seed), 0
    for kind, at in [("axial", (0, 4, z)) for z in (560, 330, 130, 90)] + [("coronal", (0, 20, 390))]:
        label = paint_slice(view(body, kind, at, 460 if kind == "axial" else 1000, 128))[1]
        for left, right in RAIDIUM54.pairs:
            a, b = np.argwhere(label == left), np.argwhere(label == right)
            if len(a) < 12 or len(b) < 12: continue
            # rows run from the patient's right to the left
            assert a[:, 0].mean() > b[:, 0].mean() + 2, RAIDIUM54.name(left)
            seen += 1
    assert seen > 20
    label = paint_slice(view(body, "axial", (0, 4, 370), 400, 128))[1]
    rows = {name: np.argwhere(label == ID[name])[:, 0].mean() for name in ("liver", "stomach")}
    assert rows["liver"] < 64 < rows["stomach"]  # and nothing else tells left from right
    spine = np.argwhere((label == ID["vertebrae_thoracic"]) | (label == ID["vertebrae_lumbar"]))
    # columns run from back to front
    assert spine[:, 1].mean() < np.argwhere(label == ID["liver"])[:, 1].mean()


def test_grey_values():
    hu, label = paint_slice(view(whole_body(1), "axial", (0, 4, 520), 360, 128))
    median = {name: np.median(hu[label == ID[name]]) for name in ("lung_left", "rib_left", "autochthon_left")}
    assert median["lung_left"] < -700 and median["rib_left"] > 200 and 20 < median["autochthon_left"] < 90
    assert hu.min() >= -1100


@pytest.mark.parametrize("kind, "
                         "at", [("axial", (0, 4, 340)), ("coronal", (0, 20, 390)), ("sagittal", (3, 4, 600))])
def test_the_search_overlooks_nothing(kind, at):
    "Every part evaluated everywhere is inside only where the boxes said to look."
    body = whole_body(5)
    cut = view(body, kind, at, 420, 48)
    for number, part in enumerate(body.parts[:160]):
        points = cut.points[part.organ.space]
        inside = np.min([atom.distance(points) for atom in part.atoms], 0) < 0
        looked = np.zeros_like(inside)
        for hit in cut.hits.get(number, []):
            looked[hit.top:hit.bottom, hit.left:hit.right] = True
        assert not (inside & ~looked).any(), part.organ.label
