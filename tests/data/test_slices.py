"What a set may leave out, and what it may not."
from dataclasses import replace

import numpy as np
import pytest
from helpers.folders import random_slices, told

from ctseg.core.anatomy import ClassMap
from ctseg.data.slices import SliceSet, known_after_resize, present_classes

IMAGES = np.zeros((3, 4, 4), np.uint8)
MASKS = IMAGES.copy()
MASKS[0, 0, 0], MASKS[1, 0, 0] = 1, 3


def test_known_is_never_guessed():
    told(
        lambda: SliceSet(IMAGES, MASKS),
        "known is missing",
        "absent cannot be told from unknown",
        "'all'",
        "'present'",
    )
    told(lambda: SliceSet(IMAGES, MASKS, "al"), "unknown value of known 'al'", "all")


def test_known_in_words():
    assert SliceSet(IMAGES, MASKS, "all").known.all()
    present = SliceSet(IMAGES, MASKS, "present")
    assert present.known.tolist() == [[True, False, False], [False, False, True], [False]*3]
    assert (present.known == present.present).all() and present.labelled.tolist() == [True, True, False]


def test_images_alone_are_unlabelled():
    s = SliceSet(IMAGES, classes=["liver", "spleen"])
    assert not s.known.any() and not s.masks.any() and s.known.shape == (3, 2)
    told(lambda: SliceSet(IMAGES), "give classes=")
    assert SliceSet(IMAGES, known=np.ones((3, 2), bool)).known.all()  # examined in vain


def test_what_is_left_out_of_a_set_gets_a_default():
    s = SliceSet(IMAGES, MASKS, "all")
    assert (
        s.names == ("0.png", "1.png", "2.png")
        and s.groups.tolist() == [0, 1, 2]
        and s.groups.dtype == np.int64
    )
    assert s.classes.names == ("class_1", "class_2", "class_3")
    assert SliceSet(IMAGES, MASKS, np.ones((3, 5), bool)).classes.names[-1] == "class_5"
    told(lambda: SliceSet(IMAGES, 0*MASKS, "all"), "the masks show no class", "give classes=")
    paired = SliceSet(IMAGES, MASKS, "all", classes=["kidney_left", "kidney_right", "liver"])
    assert paired.classes == ClassMap.from_names(
        ["kidney_left", "kidney_right", "liver"]
    ) and paired.classes.pairs == ((1, 2),)


@pytest.mark.parametrize("change, words", [
    ({"images": IMAGES.astype(float)}, ("SliceSet.images "
                                        "is "
                                        "float64 "
                                        "[3, "
                                        "4, "
                                        "4]", "uint8")), ({"masks": MASKS[:2]}, ("SliceSet.masks", "[2, 4, 4]")),
    ({"known": np.ones((3, 2), bool)}, ("SliceSet.known", "[3, 2]", "[3, 3]")), ({"known": [[True]*3]*3}, ("SliceSet.known "
                                                                                                           "is "
                                                                                                           "list",)),
    ({"groups": np.zeros(3)}, ("SliceSet.groups is "
                               "float64",)), ({"names": ["0.png"]}, ("1 names", "3 images")),
    ({"images": IMAGES[0], "masks": MASKS[0]}, ("2 "
                                                "dimensions", "[N,H,W]")), ({"masks": MASKS + np.uint8(1)}, ("holds 4 at (0, 0)", "3 classes")),
    ({"known": np.zeros((3, 3), bool)}, ("mask of 0.png", "class 1 (class_1)", "not examined"))])
def test_what_does_not_fit(change, words):
    told(lambda: replace(SliceSet(IMAGES, MASKS, "all"), **change), *words)


def test_parts_and_joins_keep_everything():
    s = random_slices()
    some = s[[5, 1]]
    assert (some.names, some.groups.tolist()) == (("5.png", "1.png"), [2, 0])
    assert (some.masks == s.masks[[5, 1]]).all() and (some.present == s.present[[5, 1]]).all()
    assert s[:4].concat(s[4:]).fingerprint() == s.fingerprint() != s[::-1].fingerprint()
    assert len(s[s.labelled]) == 8 and len(s[0]) == 1 and len(s[:0]) == 0


def test_a_set_is_frozen_and_says_what_it_holds():
    s = SliceSet(IMAGES, MASKS, "present", classes=[*"abcdef"])
    with pytest.raises(AttributeError): s.images = IMAGES
    for part in (
        "3 slices 4x4",
        "2 labelled",
        "6 classes",
        "3 groups",
        "2 present, 0 absent, 16 unknown",
        "a, b, c, d, …",
    ):
        assert part in repr(s)
    assert "[" not in repr(s)


@pytest.mark.parametrize("seed", range(5))
def test_present_classes_by_the_plainest_way(seed):
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 9, (6, 5, 7), np.uint8)*rng.integers(0, 2, (6, 5, 7), np.uint8)
    plain = np.array([[(m == c).any() for c in range(1, 8)] for m in masks])
    assert (present_classes(masks, 7) == plain).all()


def test_what_a_smaller_mask_lost_is_unknown():
    drawn = np.array([[True, True, False, False]])
    known = np.array([[True, True, True, False]])
    small = np.array([[[0, 2], [0, 0]]], np.uint8)
    assert known_after_resize(known, drawn, small).tolist() == [[False, True, True, False]]
