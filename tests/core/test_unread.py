"What the system does not give is told as that, and not as damaged: to copy the file again would not help."
import builtins
import errno
import io
import os
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json
from ctseg.core.paths import Unread, refuse_unread
from ctseg.core.tables import table_text
from ctseg.data.images import decode_png
from ctseg.data.mask_rows import read_image_names
from ctseg.io.nifti import read_nifti
from ctseg.io.openkbp import read_openkbp
from ctseg.models.base import read_weights
from ctseg.prediction.store import StoredProbabilities
from ctseg.runs.contents import read_pseudo, write_pseudo
from ctseg.training.checkpoints import read_checkpoint, write_checkpoint


def refuse(monkeypatch, *paths, number=errno.EACCES):
    "Pretend that the system does not give these files: permissions mean nothing to an administrator."
    real, refused = io.open, {os.fspath(path) for path in paths}

    def refusing(file, *options, **more):
        if isinstance(file, (str, os.PathLike)) and os.path.abspath(file) in refused:
            raise OSError(number, os.strerror(number), os.fspath(file))
        return real(file, *options, **more)

    monkeypatch.setattr(builtins, "open", refusing)
    monkeypatch.setattr(io, "open", refusing)


def write_probabilities(path):
    from ctseg.core.anatomy import ClassMap
    from ctseg.prediction import store
    with store.write_probabilities(path, ClassMap.from_names(["a"]), "softmax", (4, 4)) as add:
        add("0.png", np.ones((1, 4, 4), np.float32))


READERS = {
    "recipe.json": (lambda path: path.write_text("{}"), read_json),
    "history.csv": (lambda path: path.write_text("epoch,loss\n"), table_text),
    "masks.csv": (lambda path: path.write_text(",0.png\nPixel 0,1\n"), read_image_names),
    "masks.csv.gz": (lambda path: path.write_bytes(b""), read_image_names),
    "0.png": (lambda path: Image.new("L", (4, 4)).save(path), decode_png),
    "w.pth": (lambda path: torch.save({"a": torch.ones(1)}, path), read_weights),
    "w.safetensors": (lambda path: path.write_bytes(b"x"), read_weights),
    "pseudo_labels.npz": (lambda path: write_pseudo({"labels": np.zeros((1, 4, 4), np.uint8)}, path), read_pseudo),
    "a.zip": (write_probabilities, StoredProbabilities),
    "scan.nii.gz": (lambda path: nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), path), read_nifti),
}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_the_system_does_not_give(tmp_path, monkeypatch, name, number):
    write, read = READERS[name]
    write(tmp_path/name)
    refuse(monkeypatch, tmp_path/name, number=number)
    with pytest.raises(InputError, match=os.strerror(number)) as told: read(tmp_path/name)
    assert "damaged" not in str(told.value) and "again; " not in str(told.value)
    assert str(tmp_path/name) in str(told.value)


def test_sizes_that_the_system_does_not_give(tmp_path, monkeypatch):
    for name in ("ct.csv", "voxel_dimensions.csv"): (tmp_path/name).write_text("1\n1\n1\n")
    refuse(monkeypatch, tmp_path/"voxel_dimensions.csv")
    with pytest.raises(InputError, match="cannot be read"): read_openkbp(tmp_path)


@pytest.mark.parametrize("part", ["state.pt", "model.safetensors"])
def test_no_phase_is_trained_again_for_a_checkpoint_that_is_not_given(tmp_path, monkeypatch, part):
    model = torch.nn.Linear(2, 2)
    write_checkpoint(tmp_path/"final", {"model": model}, {"step": 1})
    before = model.weight.clone()
    refuse(monkeypatch, tmp_path/"final"/part, number=errno.EIO)
    with warnings.catch_warnings(action="error"), pytest.raises(Unread, match="network fails"):
        read_checkpoint(tmp_path/"final", {"model": model}, "again")
    monkeypatch.undo()
    assert (model.weight == before).all()
    assert read_checkpoint(tmp_path/"final", {"model": model}, "again")["step"] == 1
    (tmp_path/"final"/part).unlink()  # it is incomplete, and no copy will come
    with pytest.warns(UserWarning, match="damaged"):
        assert read_checkpoint(tmp_path/"final", {"model": model}, "again") is None


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
])
def test_memory_that_lacks_is_no_damage(tmp_path, monkeypatch, error):
    torch.save({"a": torch.ones(1)}, tmp_path/"w.pth")
    def fails(*_, **__): raise error
    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(type(error)): read_weights(tmp_path/"w.pth")
    refuse_unread("w.pth", EOFError())  # is for the reader to tell
    refuse_unread("w.pth", OSError("not a zip"))
