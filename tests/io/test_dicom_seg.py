"Predictions as DICOM SEG: on their own series, with codes."

import numpy as np
import pydicom
import pytest
from helpers.dicom import flat_series, planes, write_series
from helpers.volumes import HU, TWO, one_line, save
from pydicom.pixels.utils import pack_bits

from ctseg.core.anatomy import RAIDIUM54
from ctseg.core.files import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io.dicom import read_series
from ctseg.io.dicom_import import import_dicom
from ctseg.io.dicom_seg import export_dicom_seg, make_segmentation
from ctseg.io.nifti_import import import_nifti
from ctseg.io.openkbp import OPENKBP
from ctseg.io.snomed import snomed


@pytest.mark.parametrize(
    "tag, needed", [("SliceThickness", False), ("FrameOfReferenceUID", True), ("StudyInstanceUID", True)]
)
def test_seg_export_of_a_ct_that_lacks_a_tag(tmp_path, tag, needed):
    write_series(tmp_path / "src", *planes(3))
    for p in (tmp_path / "src").iterdir():
        ds = pydicom.dcmread(p)
        if tag in ds:
            delattr(ds, tag)
        ds.save_as(p)
    import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO, test_share=1.0)
    masks = read_challenge(tmp_path / "out", "test").masks
    masks[:, 2:4, 2:4] = 1
    if not needed:
        assert export_dicom_seg(masks, tmp_path / "out", tmp_path / "src", tmp_path / "seg") == {"v000": 1}
    else:
        with pytest.raises(InputError) as e:
            export_dicom_seg(masks, tmp_path / "out", tmp_path / "src", tmp_path / "seg")
        assert tag in one_line(e) and not (tmp_path / "seg").exists()


def test_seg_export_needs_its_own_series(tmp_path):
    write_series(tmp_path / "src", *planes(3))
    write_series(tmp_path / "other", *planes(3))
    import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO, test_share=1.0)
    masks = read_challenge(tmp_path / "out", "test").masks
    with pytest.raises(InputError) as e:
        export_dicom_seg(masks, tmp_path / "out", tmp_path / "other", tmp_path / "seg")
    assert "imported from" in one_line(e) and not (tmp_path / "seg").exists()
    assert export_dicom_seg(masks, tmp_path / "out", tmp_path / "src", tmp_path / "seg") == {
        "v000": 0
    }  # nothing predicted, no file
    save(HU, tmp_path / "nii/a.nii.gz")
    import_nifti(tmp_path / "nii", tmp_path / "out2", classes=TWO, test_share=1.0)
    with pytest.raises(InputError) as e:
        export_dicom_seg(
            read_challenge(tmp_path / "out2", "test").masks,
            tmp_path / "out2",
            tmp_path / "src",
            tmp_path / "seg2",
        )
    assert "export nifti" in one_line(e)


def test_every_class_of_ours_has_a_code():
    for n in RAIDIUM54.names + OPENKBP.names:
        assert snomed(n)[0], n
    assert snomed("some_new_thing")[:3] == (None, None, None)


def crop(seg):
    "Only the bounding box is stored."
    pixels = seg.pixel_array[:, 1:9, 2:10]
    seg.Rows, seg.Columns = pixels.shape[1:]
    seg.PixelData = pack_bits(pixels)


def shift(seg):
    for frame in seg.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[0] += 1.5


def turn(seg):
    seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [
        -1,
        0,
        0,
        0,
        -1,
        0,
    ]


@pytest.mark.parametrize(
    "spoil, says",
    [
        (crop, "has 8x8 pixels, and its series has 18x20"),
        (shift, "lies beside the slices"),
        (turn, "other directions"),
    ],
)
def test_a_segmentation_off_the_grid_of_its_series(tmp_path, spoil, says):
    flat_series(tmp_path / "src")
    series, voxels = read_series(tmp_path / "src")
    labels = np.zeros(voxels.shape, np.uint8)
    labels[4:8, 3:7, 1:4] = 1
    make_segmentation(series, labels, TWO, "v000").save_as(tmp_path / "src" / "seg.dcm")
    assert import_dicom(tmp_path / "src", tmp_path / "good", classes=TWO)["labelled"] == 5
    seg = pydicom.dcmread(tmp_path / "src" / "seg.dcm")
    spoil(seg)
    seg.save_as(tmp_path / "src" / "seg.dcm")
    with pytest.raises(InputError) as e:
        import_dicom(tmp_path / "src", tmp_path / "out", classes=TWO)
    assert says in one_line(e) and str(e.value).startswith("seg.dcm: its SEG")
    assert not (tmp_path / "out").exists()
