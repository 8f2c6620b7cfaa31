"NIfTI files: predictions go back without a header of the source."

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from helpers.volumes import GRID, HU, TWO, leaks, one_line, save, volume

from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import write_masks
from ctseg.io.index import read_index
from ctseg.io.nifti import export_nifti, read_label_map, read_nifti
from ctseg.io.nifti_import import import_nifti
from ctseg.io.slicing import Slicing


def test_export_nifti_keeps_no_header(tmp_path):
    image = nib.Nifti1Image(HU, GRID)
    image.header["descrip"], image.header["db_name"] = b"Planted Patience", b"QX-4711"
    (tmp_path / "src").mkdir()
    nib.save(image, tmp_path / "src/Planted_Patience_19370401.nii")
    import_nifti(tmp_path / "src", tmp_path / "out", test_share=1.0, classes=TWO)
    masks = np.random.default_rng(0).integers(
        0, 3, read_challenge(tmp_path / "out", "test").masks.shape, dtype=np.uint8
    )
    write_masks(masks, list(read_index(tmp_path / "out")[1]), tmp_path / "sub.csv")
    assert export_nifti(tmp_path / "sub.csv", tmp_path / "out", tmp_path / "back") == {"v000": (5, 5)}
    assert nib.load(tmp_path / "back/v000.nii.gz").shape == HU.shape
    assert not leaks(tmp_path / "out") and not leaks(tmp_path / "back")
    for bad in (masks[:-1], tmp_path / "nothing.csv"):
        with pytest.raises(InputError) as e:
            export_nifti(bad, tmp_path / "out", tmp_path / "back2")
        one_line(e)
    (tmp_path / "out/index.json").unlink()
    with pytest.raises(InputError) as e:
        export_nifti(masks, tmp_path / "out", tmp_path / "back2")
    assert "ctseg import" in one_line(e)


def test_export_checks_the_masks(tmp_path):
    save(HU, tmp_path / "nii/a.nii.gz")
    import_nifti(tmp_path / "nii", tmp_path / "out", classes=TWO, test_share=1.0)
    masks = read_challenge(tmp_path / "out", "test").masks
    for bad, told in ((masks[:, 1:, 1:], "pixels"), (masks + 3, "value 3")):
        with pytest.raises(InputError) as e:
            export_nifti(bad, tmp_path / "out", tmp_path / "back")
        assert told in one_line(e) and not (tmp_path / "back").exists()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_nearly_whole_are_rounded(tmp_path, dtype):
    labels = volume(0).labels
    save(labels + np.where(labels > 0, -0.0009, 0.0004).astype(dtype), tmp_path / "a.nii.gz")
    assert (read_label_map(tmp_path / "a.nii.gz", labels.shape, GRID) == labels).all()


@pytest.mark.parametrize("value", [0.5, 1.002, -1, 256, 300.0, np.nan, np.inf])
def test_a_label_that_is_none_is_named(tmp_path, value):
    labels = volume(0).labels.astype(np.float32 if isinstance(value, float) else np.int16)
    labels[2, 3, 1] = value
    save(labels, tmp_path / "a.nii.gz")
    with pytest.raises(InputError) as e:
        read_label_map(tmp_path / "a.nii.gz", labels.shape, GRID)
    assert f"it holds {value:g}; expected whole numbers from 0 to 255" in one_line(e)


@pytest.mark.parametrize("at", [-6, .5])
def test_a_packed_file_with_a_flipped_bit(tmp_path, at):
    "The voxels can be read, and only the checksum at the end tells that they are not what was written."
    save(HU, tmp_path/"a.nii.gz")
    content = bytearray((tmp_path/"a.nii.gz").read_bytes())
    content[at if at < 0 else int(at*len(content))] ^= 1
    (tmp_path/"a.nii.gz").write_bytes(content)
    with pytest.raises(InputError) as e:
        read_nifti(tmp_path/"a.nii.gz")
    assert "damaged" in one_line(e)


def test_a_sheared_volume_is_cut_in_its_own_plane_only(tmp_path):
    "As a tilted gantry leaves it: its slices are pictures, what crosses them is not."
    sheared = np.diag([1., 1, 3, 1])
    sheared[1, 2] = 1
    save(HU, tmp_path/"src"/"a.nii.gz", sheared)
    assert import_nifti(tmp_path/"src", tmp_path/"out", classes=TWO)["train"] == HU.shape[2]
    with pytest.raises(InputError, match="sheared"):
        import_nifti(tmp_path/"src", tmp_path/"across", Slicing(orientation="RSP"), TWO)


def test_a_tilde_is_a_name_like_any_other(tmp_path, monkeypatch):
    "Libraries take it for somebody's home; a path on the command line has been through the shell."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path/"home"))
    save(HU, tmp_path/"~"/"src"/"a.nii.gz")
    import_nifti("~/src", "~/out", test_share=1.0, classes=TWO)
    masks = np.zeros(read_challenge("~/out", "test").masks.shape, np.uint8)
    write_masks(masks, list(read_index("~/out")[1]), "~/sub.csv")
    export_nifti("~/sub.csv", "~/out", "~/back")
    assert nib.load(tmp_path/"~"/"back"/"v000.nii.gz").shape == HU.shape
    assert not (tmp_path/"home").exists()


def test_tiny_voxels_are_of_another_unit(tmp_path):
    save(HU, tmp_path / "src/c.nii.gz", GRID * [[1e-3], [1e-3], [1e-3], [1]])  # metres, say
    with pytest.raises(InputError, match="seems to be in another unit"):
        import_nifti(tmp_path / "src", tmp_path / "out")


@pytest.mark.parametrize("target", ["nowhere.nii.gz", "c.nii.gz"])
def test_a_link_without_an_end_is_told(tmp_path, target):
    (tmp_path / "c.nii.gz").symlink_to(target)
    with pytest.raises(InputError, match="a link that leads nowhere"):
        read_nifti(tmp_path / "c.nii.gz")


def changed(path, at, value):
    "The bytes of a small NIfTI with other numbers at a place of its header."
    save(HU.astype(np.int16), path)
    content = bytearray(path.read_bytes())
    content[at:at + len(value)] = value
    return bytes(content)


@pytest.mark.parametrize("packed", [False, True])
def test_bytes_behind_the_voxels_are_told(tmp_path, packed):
    "Two files joined, a second member of gzip, a header that describes less than is there."
    def written(*parts):
        path = tmp_path / ("a.nii.gz" if packed else "a.nii")
        path.write_bytes(b"".join(map(gzip.compress, parts) if packed else parts))
        return path

    whole = changed(tmp_path / "whole.nii", 0, b"")
    half = len(whole) // 2
    assert read_nifti(written(whole[:half], whole[half:]))[0].shape == HU.shape
    shorter = changed(tmp_path / "whole.nii", 46, struct.pack("<h", 4))
    no_offset = changed(tmp_path / "whole.nii", 108, struct.pack("<f", 0))
    for parts in [(whole, whole), (whole, b"\0"), (shorter,), (no_offset,), (whole[:-1],)]:
        with pytest.raises(InputError) as e:
            read_nifti(written(*parts))
        assert "cut off" in one_line(e) or "its header describes" in one_line(e)


@pytest.mark.parametrize("slope", [0, np.nan])
def test_without_a_slope_values_are_as_they_are(tmp_path, slope):
    (tmp_path / "a.nii").write_bytes(changed(tmp_path / "b.nii", 112, struct.pack("<ff", slope, np.nan)))
    assert (read_nifti(tmp_path / "a.nii")[0] == HU.astype(np.int16)).all()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("slope, offset", [(np.inf, 0), (-np.inf, 5), (1, np.nan), (2, np.inf)])
def test_an_infinite_scaling_is_damage(tmp_path, ending, slope, offset):
    content = changed(tmp_path / "b.nii", 112, struct.pack("<ff", slope, offset))
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    with pytest.raises(InputError, match="scl_slope|intercept"):
        read_nifti(path)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_origin_that_is_no_number_is_told(tmp_path, number):
    "Distances to it are no numbers either, and none is too large."
    nowhere = GRID.copy()
    nowhere[1, 3] = number
    save(HU, tmp_path / "a.nii", nowhere)
    with pytest.raises(InputError, match="cannot be inverted"):
        read_nifti(tmp_path / "a.nii")
