"One of everything that a command reads, small, made once."
import json
import os
import shutil
from pathlib import Path

import numpy as np

RUNS = Path(__file__).resolve().parents[2]/"fixtures"/"runs"
SETTINGS = [
    "--device",
    "cpu",
    *(
        f"--set={s}"
        for s in (
            "width=1",
            "batch_size=4",
            "image_size=32",
            "folds=3",
            "precision=fp32",
            "augment=none",
            "encoder_lr=0",
        )
    ),
]
EPOCHS = "--set=epochs=4"  # of the world's runs


def in_child(f, *args) -> int:
    "`f(*args)` in a forked process, which imports nothing again; its exit status."
    pid = os.fork()
    if not pid:
        status = 1
        try:
            f(*args)
            status = 0
        finally: os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train(data: str, out: str, recipe: str, settings: list[str], epochs: int | None = None):
    "A run; with `epochs` it is killed after so many."
    from ctseg.recipes.fit import fit
    from ctseg.recipes.table import get_recipe
    from ctseg.runs.recipe import apply_settings
    from ctseg.training import loop
    if epochs:
        whole = loop.end_epoch
        def end_epoch(session):
            whole(session)
            if session.progress.epoch == epochs: os._exit(0)
        loop.end_epoch = end_epoch
    chosen = [s.removeprefix("--set=") for s in settings if s.startswith("--set=")]
    fit(data, apply_settings(get_recipe(recipe), chosen), out, device="cpu", progress=False)


def nifti_source(folder: Path):
    from helpers.volumes import save
    rng = np.random.default_rng(0)
    for case in ("a", "b"):
        save(
            rng.normal(0, 200, (12, 12, 4)).astype(np.float32),
            folder/"images"/f"{case}.nii.gz",
            np.diag([-3., 3, 5, 1]),
        )
        save(
            rng.integers(0, 3, (12, 12, 4), dtype=np.uint8),
            folder/"labels"/f"{case}.nii",
            np.diag([-3., 3, 5, 1]),
        )
    (folder/"patients.json").write_text(json.dumps({"a": "p1", "b": "p2"}))
    (folder/"class_names.json").write_text(json.dumps({"1": "liver", "2": "spleen"}))
    (folder/"annotated_labels.json").write_text(json.dumps({"a": [1, 2], "b": [1, 2]}))


def structures_source(folder: Path):
    from helpers.volumes import save
    for case in ("s0001", "s0002"):
        save(np.full((12, 12, 4), 40, np.int16), folder/case/"ct.nii.gz", np.diag([-10., 10, 30, 1]))
        for i, name in enumerate(("liver", "spleen")):
            mask = np.zeros((12, 12, 4), np.uint8)
            mask[2 + 4*i:5 + 4*i, 3:8] = 1
            save(mask, folder/case/"segmentations"/f"{name}.nii.gz", np.diag([-10., 10, 30, 1]))
    (folder/"meta.csv").write_text("image_id;age;split\ns0001;50;train\ns0002;60;val\n")
    (folder/"names.json").write_text(json.dumps({"1": "liver", "2": "spleen"}))


def openkbp_source(folder: Path):
    from ctseg.io.openkbp import OPENKBP_FILES
    for patient in ("train-pats/pt_3", "test-pats/pt_300"):
        inside = folder/"provided-data"/patient
        inside.mkdir(parents=True)
        at = np.ravel_multi_index([a.ravel() for a in np.mgrid[40:70, 40:70, 60:62]], (128,)*3)
        (inside/"ct.csv").write_text(",data\n" + "".join(f"{i},1064.0\n" for i in np.sort(at)))
        for k, name in enumerate(OPENKBP_FILES):
            own = np.ravel_multi_index([a.ravel() for a in np.mgrid[50 + k:52 + k, 52:54, 60:62]], (128,)*3)
            (inside/f"{name}.csv").write_text(",data\n" + "".join(f"{i},\n" for i in np.sort(own)))
        (inside/"voxel_dimensions.csv").write_text("3.906\n3.906\n2.5\n")


def dicom_source(folder: Path):
    from helpers.dicom import box, flat_series, write_rt
    folder.mkdir()
    flat_series(folder/"one")
    write_rt(folder/"one", [("liver", [box(2., 3, 9), box(4., 3, 9)]), ("spleen", [box(2., 10, 14)])])


def png_source(folder: Path):
    "Images, their masks as values, and the same as run-length codes."
    from PIL import Image
    rng = np.random.default_rng(0)
    rows = ["id,class,rle"]
    for part in ("images", "masks"): (folder/part).mkdir(parents=True)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder/"images"/f"{i}.png")
        mask = np.zeros((16, 16), np.uint8)
        mask[2:6, 3:7], mask[8:12, 4:9] = 1, 2
        Image.fromarray(mask).save(folder/"masks"/f"{i}.png")
        rows += [f"{i},liver,3 5 40 2", f"{i},spleen,"]
    (folder/"codes.csv").write_text("\n".join(rows) + "\n")
    (folder/"names.json").write_text(json.dumps({"1": "liver", "2": "spleen"}))


def zero_masks(folder: Path, split: str, path: Path):
    "A submission without structures."
    from ctseg.data.images import read_images
    from ctseg.data.mask_csv import write_masks
    names, images = read_images(folder/f"{split}-images", cache=False)
    masks = np.zeros_like(images)
    masks[:, 4:8, 4:8] = 1
    write_masks(masks, names, path)


def make_world(folder: Path, volumes: bool = True) -> Path:
    "Everything, below `folder`."
    folder.mkdir(parents=True)
    os.environ["CTSEG_CACHE"] = str(folder/"cache")
    (folder/"cache").mkdir(mode=0o700)
    shutil.copytree(RUNS/"challenge", folder/"data")
    data = str(folder/"data")
    runs = {
        "run": ("ctseg", None),
        "run2": ("original-teacher-student", None),
        "unfinished": ("original-attunet", 3),
    }
    for name, (recipe, epochs) in runs.items():
        if in_child(train, data, str(folder/name), recipe, [*SETTINGS, EPOCHS], epochs):
            raise RuntimeError(f"{recipe} cannot be trained")
    zero_masks(folder/"data", "test", folder/"sub.csv")
    if in_child(keep_probabilities, folder): raise RuntimeError("no probabilities")
    if volumes and in_child(make_volumes, folder): raise RuntimeError("no volumes")
    shutil.rmtree(folder/"cache")
    (folder/"cache").mkdir(mode=0o700)
    if in_child(fill_cache, folder): raise RuntimeError("no cache")
    return folder


def keep_probabilities(folder: Path):
    from ctseg.prediction.predictor import load_predictor
    from ctseg.prediction.submission import predict_folder
    predict_folder(
        load_predictor(folder/"run", "cpu"),
        folder/"data/test-images",
        folder/"p.csv",
        folder/"kept.prob",
    )
    (folder/"p.csv").unlink()


def make_volumes(folder: Path):
    from ctseg.data.challenge import read_challenge
    from ctseg.data.store import write_store
    from ctseg.io.dicom_import import import_dicom
    from ctseg.io.nifti_import import import_nifti
    from ctseg.io.slicing import Slicing
    every = Slicing(min_body=0)
    nifti_source(folder/"nifti")
    structures_source(folder/"total")
    openkbp_source(folder/"openkbp")
    dicom_source(folder/"dicom")
    png_source(folder/"png")
    shutil.copytree(folder/"nifti"/"labels", folder/"imported_labels")
    write_store(read_challenge(folder/"data"), folder/"store")
    import_nifti(folder/"nifti", folder/"imported", every, test_share=.5)
    zero_masks(folder/"imported", "test", folder/"imported.csv")
    import_dicom(folder/"dicom", folder/"from_dicom", every)
    zero_masks(folder/"from_dicom", "train", folder/"from_dicom.csv")


def fill_cache(folder: Path):
    from ctseg.data.challenge import check_challenge
    check_challenge(folder/"data")


def warm(world: Path):
    "Import in this process what its children would import again and again."
    import io
    import contextlib
    import tempfile
    import ctseg.cli.main
    import ctseg.report.comparison
    import ctseg.io.dicom_import
    import ctseg.io.dicom_seg
    import ctseg.io.nifti_import
    import ctseg.integrations.nnunet
    import ctseg.io.openkbp
    import ctseg.io.totalsegmentator
    from ctseg.report.page import report
    with tempfile.TemporaryDirectory() as d, contextlib.redirect_stderr(io.StringIO()):
        train(str(world/"data"), f"{d}/run", "original-attunet", [*SETTINGS, "--set=epochs=1"])
        report(f"{d}/run", str(world/"data"))
