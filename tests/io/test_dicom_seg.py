"Predictions as DICOM SEG: on their own series, with codes."

import highdicom
import pydicom
import pytest
from helpers.dicom import planes, write_series
from helpers.volumes import HU, TWO, one_line, save

from ctseg.core.anatomy import RAIDIUM54
from ctseg.core.errors import InputError
from ctseg.data.challenge import read_challenge
from ctseg.io.dicom_import import import_dicom
from ctseg.io.dicom_seg import export_dicom_seg
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
        highdicom.seg.segread(tmp_path / "seg" / "v000.dcm")
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
    (tmp_path / "out" / "class_names.json").rename(tmp_path / "names.json")
    with pytest.raises(InputError, match="class_names.json"):  # not the challenge's names instead
        export_dicom_seg(masks, tmp_path / "out", tmp_path / "src", tmp_path / "seg")
    (tmp_path / "names.json").rename(tmp_path / "out" / "class_names.json")
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
