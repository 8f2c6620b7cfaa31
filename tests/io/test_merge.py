"""Sources become one folder: nothing unknown becomes background, nobody is mixed up, and every
contradiction is told in one line."""
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers.command import ctseg
from helpers.folders import set_json, told, tree
from skimage.io import imsave

from ctseg.core.anatomy import ClassMap
from ctseg.data.challenge import check_challenge, read_challenge, write_challenge
from ctseg.data.slices import SliceSet
from ctseg.io.cases import Case
from ctseg.io.folders import write_volumes
from ctseg.io.index import predicted_volumes
from ctseg.io.merge import merge
from ctseg.io.merge_classes import match_classes, meaning
from ctseg.io.slicing import Slicing
from ctseg.io.toy_scans import TORSO_CLASSES, torso_scans

LUNGS = {"lungs": ["lung_left", "lung_right"]}


def slices(names, unions=None, n=6, size=16, seed=0, top=None) -> SliceSet:
    """Random slices: the last third without annotation, on slice 0 the last class unknown, some pixels to
    be ignored on slice 1."""
    rng = np.random.default_rng(seed)
    classes = ClassMap.from_names(names, unions)
    C = len(classes)
    known = np.ones((n, C), bool)
    known[2*n//3:], known[0, -1] = False, False
    for u, members in classes.unions: known[:, [m - 1 for m in members]] = False
    masks = rng.integers(0, C + 1, (n, size, size), np.uint8)
    masks *= np.concatenate([np.ones((n, 1), bool), known], 1)[np.arange(n)[:, None, None], masks]
    masks[1, :2] = 255
    images = rng.integers(0, 256, (n, size, size), np.uint8)
    return SliceSet(images, masks, known, groups=np.arange(n)//2, classes=classes)


def folder(path, names, unions=None, test=None, **how):
    write_challenge(slices(names, unions, **how), path)
    if test is not None:
        s = slices(names, unions, **(how | {"seed": how.get("seed", 0) + 100}))
        if test == "whole":
            s = SliceSet(s.images, s.masks, np.ones_like(s.known), s.names, s.groups, s.classes)
        if test == "none": s = SliceSet(s.images, None, None, s.names, s.groups, s.classes)
        write_challenge(s, path, "test")
    return path


@pytest.fixture
def three(tmp_path):
    "Three hospitals; `liver` has other numbers and spellings, and only c knows the lungs as one."
    return [folder(tmp_path/"a", ["liver", "lung_left", "lung_right"], seed=1, test="whole"),
            folder(tmp_path/"b", ["Spleen", "Liver"], seed=2, test="none"),
            folder(tmp_path/"c", ["LUNGS", "Kidney_L"], seed=3)]


# --- what the merged folder says
# -----------------------------------------------------------------------------------------------------

def test_every_pixel_and_cell_is_where_its_name_is(three, tmp_path):
    merge(three, tmp_path/"m", unions=LUNGS)
    m = read_challenge(tmp_path/"m")
    assert m.classes.names == ("liver", "lung_left", "lung_right", "Spleen", "LUNGS", "Kidney_L")
    assert m.classes.union_table == {"LUNGS": ["lung_left", "lung_right"]}
    expected = {
        "a": ["liver", "lung_left", "lung_right"],
        "b": ["Spleen", "liver"],
        "c": ["LUNGS", "Kidney_L"],
    }
    for i, (path, names) in enumerate(zip(three, expected.values())):
        s, rows = read_challenge(path), slice(6*i, 6*i + 6)
        assert (m.images[rows] == s.images).all()
        ids = [m.classes.id(name) for name in names]
        for number, id in enumerate(ids, 1):
            assert ((m.masks[rows] == id) == (s.masks == number)).all()
            assert (m.known[rows, id - 1] == s.known[:, number - 1]).all()
        assert ((m.masks[rows] == 255) == (s.masks == 255)).all() and (s.masks == 255).any()
        others = [c for c in range(6) if c + 1 not in ids]
        assert not m.known[rows][:, others].any(), "what a source never looked for is unknown"
    assert check_challenge(tmp_path/"m")["train"]["unlabelled"] == 6


def test_the_test_split_is_merged_with_what_is_known_of_it(three, tmp_path):
    merge(three, tmp_path/"m", unions=LUNGS)
    test = read_challenge(tmp_path/"m", "test")
    assert len(test) == 12 and test.known[:6].sum(1).tolist() == [3]*6 and not test.known[6:].any()
    assert (test.masks[:6] == read_challenge(three[0], "test").masks).all()


def test_patients_stay_apart_and_remain_who_they_are(three, tmp_path):
    for path, people in zip(three, ([7, 7, 8, 8, 9, 9], ["7", "7", "x", "x", "y", "y"], None)):
        if people: set_json("patients.json", lambda table: table | {"train": people})(path)
        else: (path/"patients.json").unlink()
    merge(three, tmp_path/"m", unions=LUNGS)
    names = json.loads((tmp_path/"m/patients.json").read_text())
    assert names["train"][:8] == ["a/7", "a/7", "a/8", "a/8", "a/9", "a/9", "b/7", "b/7"] and names["train"][
        -1
    ].startswith("c/train")
    groups = read_challenge(tmp_path/"m").groups
    assert groups[0] == groups[1] != groups[6] == groups[7] and len(set(groups)) == 3 + 3 + 6


def test_the_tables_tell_what_came_from_where(three, tmp_path):
    facts = merge(three, tmp_path/"m", unions=LUNGS)
    rows = pd.read_csv(tmp_path/"m/sources.csv").set_index(["source", "split", "class"])
    assert rows.loc[("b", "train", "liver"), ["called", "slices", "examined"]].tolist() == ["Liver", 6, 3]
    assert ("b", "train", "lung_left") not in rows.index and facts["table"].loc["lung_left", "b"] == ""
    assert facts["table"].loc["liver", "b"].startswith("3 (")
    origins = pd.read_csv(tmp_path/"m/origins.csv")
    assert len(origins) == 18 + 12 and origins.iloc[7].tolist() == ["train", "7.png", "b", "1.png"]


def test_a_union_of_one_source_and_the_members_of_another(tmp_path):
    a = folder(
        tmp_path/"a",
        ["parotid_l", "parotid_r", "parotids"],
        {"parotids": ["parotid_l", "parotid_r"]},
        seed=1,
    )
    b = folder(tmp_path/"b", ["Parotid Right", "Parotid Left"], seed=2)
    c = folder(
        tmp_path/"c",
        ["Parotid_L", "Parotid_R", "Glnd_Parotid"],
        {"Glnd_Parotid": ["Parotid_R", "Parotid_L"]},
        seed=3,
    )
    merge([b, a, c], tmp_path/"m")
    classes = read_challenge(tmp_path/"m").classes
    assert classes.names == ("Parotid Right", "Parotid Left", "parotids") and classes.pairs == ((2, 1),)
    assert classes.unions == ((3, (1, 2)),)


def test_the_order_of_the_sources_changes_names_and_not_meaning(three, tmp_path):
    for order, out in ((three, "m"), (three[::-1], "n")): merge(order, tmp_path/out, unions=LUNGS)
    m, n = (read_challenge(tmp_path/out) for out in "mn")
    there = {image.tobytes(): i for i, image in enumerate(n.images)}
    columns = [[meaning(name) for name in n.classes.names].index(meaning(name)) for name in m.classes.names]
    rows = [there[image.tobytes()] for image in m.images]
    assert (n.known[rows][:, columns] == m.known).all() and (n.present[rows][:, columns] == m.present).all()


# --- renaming and spelling --------------------------------------------------------------------------------
# ---------------------------

@pytest.mark.parametrize("a, b", [
    ("kidney_left", "Kidney_L"), ("SpinalCord", "spinal_cord"), ("Bone_Mandible", "mandible"), ("Lung "
                                                                                                "L", "left lung"), ("V_Venacava_I", "IVC"),
    ("GTV "
     "node", "GTV-NODE"), ("node left", "node_l"), ("Rib_R_12", "rib_right_12"), ("oesophagus", "esophagus"), ("bladder", "urinary_bladder"),
])
def test_spellings_of_one_class(a, b):
    plan = match_classes({"a": ClassMap.from_names([a]), "b": ClassMap.from_names([b])})
    assert plan.classes.names == (a,) and plan.ids["b"][1] == 1


@pytest.mark.parametrize("a, b", [
    ("kidney_left", "kidney_right"), ("liver", "liver_tumor"), ("GTV+", "GTV-"), ("node_1", "node_2"), ("vertebrae_L1", "vertebrae_L2"), ("brain", "brainstem"),
])
def test_what_is_not_one_class(a, b):
    assert len(match_classes({"a": ClassMap.from_names([a]), "b": ClassMap.from_names([b])}).classes) == 2


def test_renaming_of_all_sources_and_of_one(tmp_path):
    a = folder(tmp_path/"a", ["vessel", "liver"], seed=1)
    b = folder(tmp_path/"b", ["CT-Liver", "vessel"], seed=2)
    (tmp_path/"r.json").write_text(
        json.dumps({"ct liver": "Liver", "a/Vessel": "liver_vessels", "vessel": "aorta"})
    )
    merge([a, b], tmp_path/"m", rename=tmp_path/"r.json")
    assert read_challenge(tmp_path/"m").classes.names == ("liver_vessels", "liver", "aorta")


def test_mirror_images_of_two_sources_are_partners():
    plan = match_classes(
        {
            "a": ClassMap.from_names(["kidney_left"]),
            "b": ClassMap.from_names(["Kidney R", "LENS_L"]),
            "c": ClassMap.from_names(["lens rt"]),
        }
    )
    assert (
        plan.classes.names == ("kidney_left", "kidney_right", "LENS_L", "LENS_R")
        and len(plan.classes.pairs) == 2
    )


def test_what_looks_alike_is_noted():
    classes = {
        source: ClassMap.from_names(names)
        for source, names in {"a": ["liver", "spleen"], "b": ["CT-Liver"], "c": ["liver_vessels"]}.items()
    }
    notes = match_classes(classes).notes
    assert (
        len(notes) == 2
        and any("CT-Liver of b and liver of a" in note for note in notes)
        and any("liver_vessels of c" in note for note in notes)
    )
    assert not match_classes(
        {"a": ClassMap.from_names(["liver", "liver_tumor"]), "b": ClassMap.from_names(["liver_tumor"])}
    ).notes


# --- contradictions ---------------------------------------------------------------------------------------
# ---------------------------

CLASSES = {"a": ["liver", "lung_left", "lung_right"], "b": ["Liver", "spleen"]}
CONTRADICTIONS = {
    "two classes of one source": ({"a": ["liver", "Liver"]}, {}, ("a", "'liver' and 'Liver'", "--rename")),
    "two classes renamed to one": (
        {},
        dict(rename={"lung_left": "lung", "lung_right": "lung"}),
        ("a", "'lung'", "--rename"),
    ),
    "a renaming onto a class that is there": ({}, dict(rename={"spleen": "liver"}), ("b", "'liver'")),
    "a renaming of nothing": ({}, dict(rename={"splen": "milt"}), ("'splen'", "did you mean spleen")),
    "a renaming of nothing in one source": ({}, dict(rename={"a/spleen": "milt"}), ("'a/spleen'",)),
    "a renaming that is no table": ({}, dict(rename={"spleen": 1}), ("from labels to class names",)),
    "a whole without a union": (
        {"b": ["Lungs", "Liver"]},
        {},
        ("'Lungs' of b", "lung_left", '{"Lungs": ["lung_left", "lung_right"]}', "--unions"),
    ),
    "a part without a union": (
        {"a": ["heart", "liver"], "b": ["heart_atrium_left"]},
        {},
        ("'heart' of a", "class_names.json"),
    ),
    "lobes without a union": (
        {"b": ["lung_upper_lobe_left", "lung_lower_lobe_left"]},
        {},
        ("'lung_left' of a", "--unions"),
    ),
    "a union with itself": (
        {"b": ["lungs"]},
        dict(unions={"lungs": ["lungs", "lung_left"]}),
        ("contains itself",),
    ),
    "a union of one": ({"b": ["lungs"]}, dict(unions={"lungs": ["lung_left"]}), ("1 members",)),
    "a union of nothing": ({"b": ["lungs"]}, dict(unions={"lungs": []}), ("0 members",)),
    "a union of twice the same": (
        {"b": ["lungs"]},
        dict(unions={"lungs": ["lung_left", "Lung_L"]}),
        ("twice",),
    ),
    "a union of strangers": (
        {"b": ["lungs"]},
        dict(unions={"lungs": ["lung_left", "lung_rihgt"]}),
        ("--unions", "did you mean lung_right"),
    ),
    "a union that is no class": (
        {},
        dict(unions={"lungs": ["lung_left", "lung_right"]}),
        ("--unions", "'lungs'"),
    ),
    "two unions of the same": (
        {"b": ["lungs", "thorax"]},
        dict(unions=LUNGS | {"thorax": ["lung_left", "lung_right"]}),
        ("same members",),
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictory_classes(name, tmp_path):
    other, how, parts = CONTRADICTIONS[name]
    folders = [
        folder(tmp_path/source, names, seed=i)
        for i, (source, names) in enumerate((CLASSES | other).items())
    ]
    before = tree(tmp_path)
    told(lambda: merge(folders, tmp_path/"m", **how), *parts)
    assert tree(tmp_path) == before


def test_a_line_that_another_makes_useless_is_told(tmp_path):
    folders = [folder(tmp_path/source, ["liver", "milt"], seed=i) for i, source in enumerate("ab")]
    rename = {"a/milt": "spleen", "b/milt": "spleen", "milt": "kidney"}
    told(lambda: merge(folders, tmp_path/"m", rename), "'milt'", "a folder's name")


def test_numbers_without_names_are_noted(tmp_path):
    folders = [folder(tmp_path/source, ["liver", "spleen"], seed=i) for i, source in enumerate("ab")]
    (folders[1]/"class_names.json").unlink()
    notes = merge(folders, tmp_path/"m")["notes"]
    assert any(str(folders[1]) in note and "class_names.json" in note for note in notes)


def test_unions_that_contradict_each_other(tmp_path):
    a = folder(tmp_path/"a", ["lung_left", "lung_right", "lungs"], LUNGS, seed=1)
    b = folder(tmp_path/"b", ["lung_left", "trachea", "lungs"], {"lungs": ["lung_left", "trachea"]}, seed=2)
    told(lambda: merge([a, b], tmp_path/"m"), "b says", "'lungs'", "lung_right", "trachea")
    c = folder(tmp_path/"c", ["lung_left", "lungs", "air"], {"lung_left": ["lungs", "air"]}, seed=3)
    told(lambda: merge([a, c], tmp_path/"m"), "contains itself")


def test_a_mask_that_a_union_contradicts(tmp_path):
    """The source has the union and both members on one slice; only together with another's union is that a
    contradiction."""
    a = folder(tmp_path/"a", ["parotid_left", "parotid_right", "parotids"], seed=1)
    b = folder(
        tmp_path/"b",
        ["parotid_left", "parotid_right", "parotids"],
        {"parotids": ["parotid_left", "parotid_right"]},
        seed=2,
    )
    told(lambda: merge([b, a], tmp_path/"m"), str(a), "parotids", "all of its members were examined")
    assert not (tmp_path/"m").exists()


def test_too_many_classes(tmp_path):
    folders = [folder(tmp_path/f"f{i}", [f"c{i}_{k}x" for k in range(130)], seed=i, n=3) for i in range(2)]
    told(lambda: merge(folders, tmp_path/"m"), "260 classes", "254")


# --- folders ----------------------------------------------------------------------------------------------
# ---------------------------

def test_folders_that_cannot_be_merged(three, tmp_path):
    a, b, c = three
    told(lambda: merge([], tmp_path/"m"), "0 folders")
    told(lambda: merge([a], tmp_path/"m"), "two or more")
    told(lambda: merge([a, b, a/"../a"], tmp_path/"m"), "are one folder")
    os.symlink(b, tmp_path/"link")
    told(lambda: merge([a, b, tmp_path/"link"], tmp_path/"m"), "are one folder")
    told(lambda: merge([a, tmp_path/"nothing"], tmp_path/"m"), "nothing", "train-images")
    told(lambda: merge([a, b], a/"m"), "lies in")
    told(lambda: merge([a, b], c), "not empty")
    told(lambda: merge([a, b], tmp_path/"m", annotated="json"), "annotated")
    assert not (tmp_path/"m").exists()


def test_a_copy_of_a_slice_is_found_in_any_split(three, tmp_path):
    a, b, _ = three
    shutil.copy(a/"train-images/3.png", b/"train-images/5.png")
    told(lambda: merge([a, b], tmp_path/"m"), "5.png", "3.png", "same image")
    shutil.copy(a/"test-images/2.png", b/"train-images/5.png")
    told(lambda: merge([a, b], tmp_path/"m"), "test-images/2.png", "train-images/5.png")
    for path in (a, b): imsave(path/"train-images/5.png", np.zeros((16, 16), np.uint8), check_contrast=False)
    merge([a, b], tmp_path/"m")  # empty images are nobody's
    assert len(read_challenge(tmp_path/"m")) == 12


def test_nobody_annotated_anything(three, tmp_path):
    for path in three[:2]: set_json("annotated_labels.json", lambda lists: [[] for _ in lists])(path)
    for path in three[:2]:
        s = read_challenge(path, annotated="present")
        write_challenge(SliceSet(s.images, None, None, s.names, s.groups, s.classes), path)
    told(lambda: merge(three[:2], tmp_path/"m"), "nothing was examined")
    assert not list(tmp_path.glob("*m*")) and not list(tmp_path.glob(".m*"))


def test_zeros_of_a_folder_without_lists(three, tmp_path):
    a, b, _ = three
    (b/"annotated_labels.json").unlink()
    told(lambda: merge([a, b], tmp_path/"m"), str(b), "absent cannot be told from unknown", "--annotated")
    merge([a, b], tmp_path/"m", annotated="present")
    m = read_challenge(tmp_path/"m")
    assert (m.known[6:] == m.present[6:]).all() and (
        m.known[:6, :3] == read_challenge(a).known
    ).all(), "a's own list speaks for a"


def test_damage_in_any_source_leaves_nothing(three, tmp_path):
    (three[2]/"train-images/4.png").write_bytes(b"no image")
    before = tree(tmp_path)
    told(lambda: merge(three, tmp_path/"m", unions=LUNGS), "4.png")
    assert tree(tmp_path) == before


def test_folders_of_one_name(tmp_path):
    folders = [folder(tmp_path/where/"data", ["liver"], seed=i) for i, where in enumerate(("north", "south"))]
    merge(folders, tmp_path/"m")
    assert set(pd.read_csv(tmp_path/"m/sources.csv").source) == {"north-data", "south-data"}


# --- sizes ------------------------------------------------------------------------------------------------
# ---------------------------

def test_sizes_need_a_word(tmp_path):
    a, b = folder(tmp_path/"a", ["liver"], seed=1), folder(tmp_path/"b", ["spleen"], seed=2, size=24)
    for how, parts in (
        (dict(), ("16x16", "24x24", "--resize")),
        (dict(resize="spacing"), ("index.json", "--resize fit or pad")),
        (dict(resize="pad", size=20), ("--size 20", "24x24")),
        (dict(resize="stretch"), ("stretch",)),
        (dict(size=10000), ("8192",)),
    ):
        told(lambda: merge([a, b], tmp_path/"m", **how), *parts)
    merge([a, b], tmp_path/"pad", resize="pad")
    padded, s = read_challenge(tmp_path/"pad"), read_challenge(a)
    assert (
        padded.images.shape[1:] == (24, 24)
        and (padded.images[:6, 4:20, 4:20] == s.images).all()
        and (padded.masks[:6, 4:20, 4:20] == s.masks).all()
    )
    assert padded.images[:6].sum() == s.images.sum()
    merge([a, b], tmp_path/"fit", size=32)
    fitted = read_challenge(tmp_path/"fit")
    assert fitted.images.shape[1:] == (32, 32) and (fitted.masks[:6, ::2, ::2] == s.masks).all()


def test_what_shrinks_away_is_unknown_and_not_absent(tmp_path):
    a = folder(tmp_path/"a", ["liver"], seed=1)
    s = slices(["liver", "spleen"], size=64, seed=2)
    masks = np.zeros_like(s.masks)
    masks[:, 8:40, 8:40], masks[:4, 60, 61] = 1, 2
    known = np.ones_like(s.known)
    write_challenge(SliceSet(s.images, masks, known, classes=s.classes), tmp_path/"b")
    merge([a, tmp_path/"b"], tmp_path/"m", resize="fit")
    m = read_challenge(tmp_path/"m")
    spleen = m.classes.id("spleen") - 1
    assert m.known[6:, spleen].tolist() == [False]*4 + [True]*2 and m.present[6:, 0].all()


def imported(path, names, **how):
    cases = [Case(name, lambda v=torso_scans()[name]: v) for name in names]
    write_volumes(cases, path, TORSO_CLASSES, Slicing(every=8, **how))
    return path


def test_imported_folders_keep_their_way_back(tmp_path):
    first, *others = torso_scans()
    a, b = imported(tmp_path/"a", [first], size=80), imported(tmp_path/"b", others[:1], size=80)
    merge([a, b], tmp_path/"m")
    m = read_challenge(tmp_path/"m")
    for volume, one in zip(predicted_volumes(m.masks, tmp_path/"m", "train"), (a, b)):
        alone = next(iter(predicted_volumes(read_challenge(one).masks, one, "train")))
        assert (
            volume.id == f"{one.name}-{alone.id}"
            and (volume.labels == alone.labels).all()
            and volume.labels.any()
        )


def test_millimetres_decide_where_all_know_them(tmp_path):
    first, *others = torso_scans()
    a, b = imported(tmp_path/"a", [first], spacing=4.0), imported(tmp_path/"b", others[:1], spacing=8.0)
    facts = merge([a, b], tmp_path/"m")
    m, s, t = read_challenge(tmp_path/"m"), read_challenge(a), read_challenge(b)
    assert facts["size"] == "x".join(map(str, m.images.shape[1:])) and not (tmp_path/"m/index.json").exists()
    area = lambda masks: (masks > 0).sum((1, 2)).max()
    assert area(m.masks[:len(s)]) == pytest.approx(area(s.masks), rel=.05)
    assert area(m.masks[len(s):]) == pytest.approx(4*area(t.masks), rel=.15)


# --- the command ------------------------------------------------------------------------------------------
# ---------------------------

def test_the_command_merges_folders_that_check_accepts(three, tmp_path):
    (tmp_path/"u.json").write_text(json.dumps(LUNGS))
    code, out, err = ctseg("merge", *three, "--out", tmp_path/"m", "--unions", tmp_path/"u.json")
    assert code == 0 and "liver" in out and "sources: 3" in out and "train: 18" in out, err
    assert ctseg("check", tmp_path/"m")[0] == 0
    code, out, err = ctseg("merge", *three, "--out", tmp_path/"n")
    assert code == 2 and len(err.splitlines()) == 1 and "--unions" in err and not (tmp_path/"n").exists()
    (tmp_path/"u.json").write_text('{"lungs": "lung_left"}')
    code, _, err = ctseg("merge", *three, "--out", tmp_path/"n", "--unions", tmp_path/"u.json")
    assert code == 2 and len(err.splitlines()) == 1 and "u.json" in err
