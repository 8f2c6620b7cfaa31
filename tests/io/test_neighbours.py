"Neighbours from an index: by volume and position, never across a gap, a volume or a patient."
import warnings

import numpy as np
import pytest
from helpers.folders import told

from ctseg.core.anatomy import ClassMap
from ctseg.core.json_files import read_json, write_json
from ctseg.data.challenge import write_challenge
from ctseg.data.slices import SliceSet
from ctseg.data.sources import read_slices, store_challenge
from ctseg.io.neighbours import places_by_split, slice_places, with_neighbours
from ctseg.io.outputs import sealed_index

LIVER = ClassMap.from_names(["liver"])


def folder_of(path, lines, groups=None, positions=None, depth=12):
    """A folder of images of one grey each, with an index.

    lines: volume and slice number of each image. positions: z in mm of the slices of a volume, by volume."""
    n = len(lines)
    images = np.arange(1, n + 1, dtype=np.uint8)[:, None, None]*np.ones((1, 8, 8), np.uint8)
    groups = np.array([ord(v) for v, _ in lines] if groups is None else groups)
    write_challenge(SliceSet(images, known="all", masks=0*images, groups=groups, classes=LIVER), path)
    volumes = {}
    for id in dict.fromkeys(v for v, _ in lines):
        z = (positions or {}).get(id)
        volumes[id] = {"kind": "nifti", "patient": 0, "shape": [8, 8, depth if z is None else len(z)],
                       "affine": np.eye(4).tolist(), "orientation": "SPL", "digest": "", "scaled": [8, 8],
                       "positions": None if z is None else [[0, 0, float(at)] for at in z]}
    entries = {f"{i}.png": {"volume": v, "slice": k, "window": [40, 400], "corner": [0, 0]}
               for i, (v, k) in enumerate(lines)}
    save_index(path, volumes, {"train": entries})
    return path


def save_index(path, volumes, images):
    write_json(sealed_index(volumes, images), path/"index.json")


def greys(place, context=1) -> list[list[int]]:
    "The grey values that are seen with each image."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = with_neighbours(read_slices(place), place, "train", context)
    return seen.stacks[:][:, :, 0, 0].tolist()


MIXED = [("a", 0), ("b", 3), ("a", 1), ("b", 4), ("a", 3), ("b", 2)]


def test_two_volumes_that_come_mixed(tmp_path):
    place = folder_of(tmp_path/"d", MIXED)
    assert greys(place) == [[0, 1, 3], [6, 2, 4], [1, 3, 0], [2, 4, 0], [0, 5, 0], [0, 6, 2]]
    assert greys(place, 2)[4] == [3, 0, 5, 0, 0]


def test_a_store_says_the_same(tmp_path):
    pytest.importorskip("zarr")
    place = folder_of(tmp_path/"d", MIXED)
    store_challenge(place, tmp_path/"s", arrays=places_by_split(place))
    assert greys(tmp_path/"s", 2) == greys(place, 2)
    slices = read_slices(tmp_path/"s")
    assert with_neighbours(slices, tmp_path/"s", "train", 1).fingerprint() == slices.fingerprint()
    store_challenge(place, tmp_path/"old")
    told(lambda: greys(tmp_path/"old"), "context needs volumes")


def test_slices_of_another_patient_are_no_neighbours(tmp_path):
    lines = [("a", k) for k in range(4)]
    assert greys(folder_of(tmp_path/"d", lines, groups=[1, 1, 2, 2])) == [
        [0, 1, 2], [1, 2, 0], [0, 3, 4], [3, 4, 0]]


@pytest.mark.parametrize("z, places", [
    ([0, 3, 6, 9], [0, 1, 2, 3]),
    ([0, 3, 6, 12, 15], [0, 1, 2, 4, 5]),
    ([0, 6, 9, 12], [0, 2, 3, 4]),
    ([0, 3, 6, 15], [0, 1, 2, 5]),
    ([0, 3, 6, 9, 14, 19, 24], [0, 1, 2, 3, 4, 5, 6]),
    ([0, 3, 6, 15, 20, 25], [0, 1, 2, 4, 5, 6]),
    ([0, -3, -6, -12, -15], [0, 1, 2, 4, 5]),
    ([0, 3.0, 6.1, 9.0, 12.05], [0, 1, 2, 3, 4]),
    ([0, 50], [0, 1]),
])
def test_a_gap_is_no_neighbour(tmp_path, z, places):
    positions = np.array([[0, 0, at] for at in z], float)
    assert slice_places(np.eye(4), "SPL", (8, 8, len(z)), positions).tolist() == places
    turned = slice_places(np.eye(4), "IPL", (8, 8, len(z)), positions)
    assert turned.tolist() == [places[-1] - place for place in reversed(places)]
    seen = greys(folder_of(tmp_path/"d", [("a", k) for k in range(len(z))], positions={"a": z}))
    for k in range(len(z) - 1):
        together = places[k + 1] - places[k] == 1
        assert (seen[k][2] > 0) == together and (seen[k + 1][0] > 0) == together


def test_what_cannot_be_is_told(tmp_path):
    place = folder_of(tmp_path/"d", [("a", 0), ("a", 4), ("b", 0)])
    told(lambda: greys(place), "0 of 3 slices have a neighbour", "--every")
    index = read_json(place/"index.json")
    del index["images"]["train"]["1.png"]
    save_index(place, index["volumes"], index["images"])
    told(lambda: greys(place), "1.png")
    (place/"index.json").unlink()
    told(lambda: greys(place), "context needs volumes", "ctseg import")
    slices = read_slices(place)
    assert with_neighbours(slices, place, "train", 0) is slices
    told(lambda: with_neighbours(slices, slices, "train", 1), "context = 1")


def test_positions_of_other_slices_are_refused(tmp_path):
    place = folder_of(tmp_path/"d", [("a", 0), ("a", 1), ("a", 4)], positions={"a": [0, 3, 6, 12, 15]})
    index = read_json(place/"index.json")
    index["volumes"]["a"]["positions"].pop()
    save_index(place, index["volumes"], index["images"])
    told(lambda: greys(place), "no grid that can be")


def test_random_windows_are_refused(tmp_path):
    place = folder_of(tmp_path/"d", MIXED)
    index = read_json(place/"index.json")
    index["images"]["train"]["2.png"]["window"] = [40, 300]
    save_index(place, index["volumes"], index["images"])
    told(lambda: greys(place), "window of its own")


def test_few_neighbours_are_warned_of(tmp_path):
    place = folder_of(tmp_path/"d", [("a", 0), ("a", 1), ("b", 0), ("c", 0), ("d", 0)])
    with pytest.warns(UserWarning, match="2 of 5 slices have a neighbour"):
        with_neighbours(read_slices(place), place, "train", 1)
