"One form of renaming for every import: the same names come out, and what does not fit is one line."
import json

import numpy as np
import pytest
from helpers.volumes import GRID, HU, save
from skimage.io import imsave

from ctseg.cli.data import grouped, import_kind
from ctseg.core.anatomy import ClassMap
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io.merge_classes import match_classes
from ctseg.io.renaming import Renaming, read_renaming, renamed_classes

NAMES = ["Leber", "Milz", "Niere li"]
EXAMINED = {"a": NAMES, "b": ["Leber"]}
MAP = np.uint8([[0, 1, 1, 1], [2, 2, 3, 255], [2, 2, 3, 3], [0, 0, 0, 0]])


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray): imsave(path, content, check_contrast=False)
    else: path.write_text(json.dumps(content))


def labels_of(case):
    "The labels of a case; on b only the first class was examined."
    return MAP if case == "a" else np.where(np.isin(MAP, (1, 255)), MAP, 0)


def png_masks(root):
    for case in EXAMINED:
        write(root/"images"/f"{case}.png", 40*(MAP % 4))
        write(root/"masks"/f"{case}.png", labels_of(case) % 255)
    write(root/"masks"/"annotated_labels.json", EXAMINED)
    write(root/"names.json", {str(i): name for i, name in enumerate(NAMES, 1)})
    return "png", [root/"images", root/"masks"], {"classes": root/"names.json", "patients": "(.)"}


def png_table(root):
    for case in EXAMINED: write(root/"images"/f"{case}.png", 40*(MAP % 4))
    rows = ["id,class,segmentation"]
    for case, names in EXAMINED.items():
        for name in names:
            at = np.flatnonzero(labels_of(case).T.ravel() == NAMES.index(name) + 1) + 1
            rows.append(f"{case},{name},{' '.join(f'{i} 1' for i in at)}")
    (root/"masks.csv").write_text("\n".join(rows))
    return "png", [root/"images", root/"masks.csv"], {"patients": "(.)"}


def nnunet(root, ending=".png"):
    labels = {name: i for i, name in enumerate(["background", *NAMES])} | {"ignore": 4}
    write(root/"raw"/"dataset.json", {"channel_names": {"0": "CT"}, "file_ending": ending, "labels": labels})
    write(root/"raw"/"annotated_labels.json", EXAMINED)
    for case in EXAMINED:
        drawn = np.where(labels_of(case) == 255, 4, labels_of(case)).astype(np.uint8)
        if ending == ".png":
            write(root/"raw"/"imagesTr"/f"{case}_0000.png", 40*(MAP % 4))
            write(root/"raw"/"labelsTr"/f"{case}.png", drawn)
        else:
            volume_of(root/"raw"/"imagesTr"/f"{case}_0000.nii.gz", None)
            volume_of(root/"raw"/"labelsTr"/f"{case}.nii.gz", drawn)
    return "nnunet", [root/"raw"], {}


def volume_of(path, drawn):
    "A CT, or a map in which a 4x4 picture of labels lies."
    voxels = HU.astype(np.int16)
    if drawn is not None:
        voxels = np.zeros(HU.shape, np.uint8)
        voxels[2:6, 2:6, 1:3] = drawn[..., None]
    path.parent.mkdir(parents=True, exist_ok=True)
    save(voxels, path, GRID)


def nifti_maps(root):
    for case in EXAMINED:
        volume_of(root/"src"/"images"/f"{case}.nii.gz", None)
        volume_of(root/"src"/"labels"/f"{case}.nii.gz", labels_of(case))
    write(root/"src"/"class_names.json", {str(i): name for i, name in enumerate(NAMES, 1)})
    write(root/"src"/"annotated_labels.json", EXAMINED)
    return "nifti", [root/"src"], {}


def nifti_structures(root):
    for case, names in EXAMINED.items():
        volume_of(root/"src"/case/"ct.nii.gz", None)
        for name in names:
            drawn = (labels_of(case) == NAMES.index(name) + 1).astype(np.uint8)
            volume_of(root/"src"/case/"segmentations"/f"{name}.nii.gz", drawn)
    return "nifti", [root/"src"], {}


SOURCES = {
    "png masks": png_masks, "png table": png_table, "nnunet slices": nnunet,
    "nnunet volumes": lambda root: nnunet(root, ".nii.gz"), "nifti maps": nifti_maps,
    "nifti structures": nifti_structures,
}


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    "Import a source of one kind with a renaming: the facts, and what is read back."
    kind, places, given = SOURCES[request.param](tmp_path)

    def imported(rename, **more):
        path = tmp_path/"rename.json"
        if isinstance(rename, str): path = rename
        else: write(path, rename)
        options = dict.fromkeys("window every per_volume size classes test_share annotated rename gaps key "
                                "test patients order first overlap scale offset skip_damaged workers store".split())
        options |= given | {"rename": path} | more
        facts = import_kind(kind, [*places, tmp_path/"out"], *grouped(options))
        return facts, read_challenge(tmp_path/"out")
    imported.out = tmp_path/"out"
    return imported


def seen(slices):
    "Each group of slices: class → how many pixels, for the classes examined."
    found = []
    for group in np.unique(slices.groups):
        one = slices[slices.groups == group]
        pixels = {}
        for id, name in enumerate(one.classes.names, 1):
            drawn = one.masks[(one.masks == id).any((1, 2))]
            if one.known[:, id - 1].any(): pixels[name] = int((drawn == id).sum()//max(1, len(drawn)))
        found.append(pixels)
    return sorted(found, key=len)


def test_labels_get_their_names(source):
    "In any usual spelling; a line that is not needed is told, and other labels stay as they are."
    facts, slices = source({"LEBER": "liver", "niere_li": "kidney_left", "Pankreas": "pancreas"})
    assert set(slices.classes.names) == {"liver", "Milz", "kidney_left"}
    assert seen(slices) == [{"liver": 3}, {"liver": 3, "Milz": 4, "kidney_left": 3}]
    assert facts["unused_renames"] == ["Pankreas"] and facts["classes"] == 3


def test_two_labels_become_one_class(source):
    "Where the renaming names both. On b only one was examined: in a list of classes this is not enough."
    facts, slices = source({"Leber": "organ", "Milz": "organ"})
    by_file = "segmentations" in str(list(source.out.parent.rglob("Leber.nii.gz")))
    few = {"organ": 3} if by_file else {}
    assert seen(slices) == [few, {"organ": 7, "Niere li": 3}]
    assert bool(facts.get("parts_alone")) != by_file


def test_names_can_be_exchanged(source):
    _, slices = source({"Leber": "Milz", "Milz": "Leber"})
    assert seen(slices) == [{"Milz": 3}, {"Milz": 3, "Leber": 4, "Niere li": 3}]


def test_a_line_may_name_its_folder(source):
    _, slices = source({"out/Leber": "liver", "Leber": "hepar", "west/Milz": "spleen"})
    assert set(slices.classes.names) == {"liver", "Milz", "Niere li"}


@pytest.mark.parametrize("rename, told", [
    ({"Leber": "Milz"}, ("would both become the class 'Milz'",)),
    ({"Lebr": "liver"}, ("renames nothing", "did you mean", "Leber")),
    ({"Leber": 3}, ("rename.json", "from labels to class names")),
    ({"Leber": " "}, ("rename.json", "from labels to class names")),
    ({"Leber": "Background"}, ("rename.json", "is no class")),
    (["Leber", "liver"], ("rename.json", "from labels to class names")),
    ({"Leber": "li\nver"}, ("cannot be printed",)),
    ("nowhere.json", ("nowhere.json",)),
], ids=str)
def test_bad_renamings_are_one_line(source, rename, told):
    with pytest.raises(InputError) as e: source(rename)
    assert all(text in str(e.value) for text in told) and "\n" not in str(e.value)
    assert not source.out.exists()


def test_unions_follow_their_names():
    old = ClassMap.from_names(["P", "PL", "PR"], {"P": ["PL", "PR"]})
    names = {"P": " parotids", "PL": "parotid_left ", "PR": "parotid_right"}
    new = renamed_classes(old, Renaming(names)).classes
    assert new.union_table == {"parotids": ["parotid_left", "parotid_right"]} and new.pairs == ((2, 3),)
    with pytest.raises(InputError, match="rename"):
        renamed_classes(old, Renaming({"PL": "P", "P": "P"}))  # a union with itself


def test_present_takes_a_part_for_the_whole():
    lobes = ClassMap.from_names(["upper", "lower"])
    one = renamed_classes(lobes, Renaming({"upper": "lung", "lower": "lung"}), any_part=True)
    masks, known = np.uint8([[[1, 255]]]), np.array([[True, False]])
    assert one.apply(masks, known).tolist() == [[True]] and masks.tolist() == [[[1, 255]]]


def test_a_merge_reads_the_same_form(tmp_path):
    write(tmp_path/"r.json", {"out/Leber": "liver", "Hepar": "liver"})
    table = read_renaming(tmp_path/"r.json").table
    sources = {"out": ClassMap.from_names(["Leber"]), "b": ClassMap.from_names(["hepar"])}
    assert match_classes(sources, table).classes.names == ("liver",)
