"""How the memory of imports, exports, merging, suggestions and reports grows with the number of slices.

    python tools/growth.py 500 2000 8000 --work FOLDER      # results: nbs/benchmarks/results/growth.json

The slices are those of tools/scale.py: data_sample's, moved and with a little noise, 40 to a patient; scans
in DICOM are of the toy head. Each command runs in a process of its own, whose largest resident memory the
system tells at its end.
"""
import argparse
import json
import shutil
from pathlib import Path

from scale import ROOT, Jittered, measured, options

RESULTS = ROOT/"nbs/benchmarks/results/growth.json"
A_PATIENT = 40  # slices
TRAIN = ["width=4", "epochs=1", "batch_size=16", "precision=fp32", "tune_rule=False"]
CLI = ["-m", "ctseg"]


def volumes(made: Jittered):
    "For each patient: a number, images and masks, uint8 [40,64,64]."
    import numpy as np
    for first in range(0, made.count, A_PATIENT):
        rows = range(first, min(first + A_PATIENT, made.count))
        images, masks = (np.stack([picture(i) for i in rows]) for picture in (made.image, made.mask))
        yield first//A_PATIENT, images, masks


def make_pictures(made: Jittered, folder: Path):
    "Images, the masks of every second patient, and a table of patients."
    from PIL import Image
    for name in ("images", "masks"): (folder/name).mkdir(parents=True)
    patients = ["image,patient"]
    for patient, images, masks in volumes(made):
        for k, (image, mask) in enumerate(zip(images, masks)):
            name = f"p{patient}-{k}.png"
            Image.fromarray(image).save(folder/"images"/name, compress_level=1)
            if patient % 2 == 0:
                Image.fromarray(mask).save(folder/"masks"/name, compress_level=1)
            patients.append(f"{name},{patient}")
    (folder/"patients.csv").write_text("\n".join(patients))


def make_nifti(made: Jittered, folder: Path):
    "A scan and a label map for each patient."
    import nibabel
    import numpy as np
    folder.mkdir()
    affine = np.diag([3., 3., 5., 1.])
    for patient, images, masks in volumes(made):
        units = images.astype(np.int16)*2 - 200  # Hounsfield units
        for name, values in (("volume", units), ("segmentation", masks)):
            volume = nibabel.Nifti1Image(values.transpose(2, 1, 0), affine)
            nibabel.save(volume, folder/f"{name}-{patient}.nii.gz")


def make_dicom(count: int, folder: Path):
    "A series and an RTSTRUCT, a ring on every slice, for each patient."
    import numpy as np
    import pydicom
    from ctseg.io.toy_dicom import head_planes, write_contours, write_series
    angle = np.linspace(0, 2*np.pi, 24, endpoint=False)
    ring = np.stack([32 + 12*np.cos(angle), 32 + 12*np.sin(angle)], 1)
    for patient in range(count//A_PATIENT):
        series = folder/f"p{patient}"/"ct"
        person = dict.fromkeys(("PatientID", "PatientName"), f"P{patient}")
        write_series(series, head_planes(A_PATIENT), (64, 64), **person)
        headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in series.iterdir()]
        headers.sort(key=lambda h: h.ImagePositionPatient[2])
        contours = {"brain": [(k, ring) for k in range(A_PATIENT)]}
        write_contours(folder/f"p{patient}"/"rs.dcm", headers, contours)


def make(count: int, folder: Path):
    "All that the commands read, but what other commands have written."
    made = Jittered(count)
    make_pictures(made, folder/"pictures")
    make_nifti(made, folder/"nifti")
    make_dicom(count, folder/"dicom")
    made.sample.classes.to_json(folder/"classes.json")


def commands(folder: Path) -> dict[str, list]:
    "Every command, in an order in which each finds what it reads."
    pictures = [folder/"pictures/images", folder/"pictures/masks"]
    options = ["--annotated", "all", "--patients", folder/"pictures/patients.csv"]
    nifti = ["--annotated", "all", "--classes", folder/"classes.json"]
    imports = {
        "png": ([*pictures], options), "nifti": ([folder/"nifti"], nifti), "dicom": ([folder/"dicom"], []),
        "nnunet": ([folder/"nnunet/Dataset501_ctseg"], []),
    }
    def imported(kind: str, store: bool) -> list:
        "The words of an import, into a folder or a store."
        source, options = imports[kind]
        out = folder/"stores"/f"{kind}.zarr" if store else folder/"folders"/kind
        return [*CLI, "import", kind, *source, out, *options, *(["--store"] if store else [])]
    data, store, run = folder/"folders/png", folder/"stores/png.zarr", folder/"run"
    first = {
        f"import {kind}{' --store' if store else ''}": imported(kind, store)
        for kind in ("png", "nifti", "dicom") for store in (False, True)
    }
    to_nnunet = [folder/"folders/nifti", folder/"nnunet", "--unknown", "partial"]
    fitted = ["--recipe", "marginal-log", "--out", run, *_set(TRAIN), "--memory", "10MB"]
    return first | {
        "export nnunet": [*CLI, "export", "nnunet", *to_nnunet],
        "import nnunet": imported("nnunet", False),
        "import nnunet --store": imported("nnunet", True),
        "merge": [*CLI, "merge", data, folder/"folders/nifti", "--out", folder/"folders/merged"],
        "check": [*CLI, "check", store],
        "export rle": [*CLI, "export", "rle", data/"y_train.csv", folder/"rle.csv"],
        "fit": [*CLI, "fit", store, *fitted],
        "report": [*CLI, "report", run, "--data", store],
        "suggest": [*CLI, "suggest", run, store, "--out", folder/"suggestions.csv"],
        "near_duplicates": [Path(__file__), "--alike", store],
    }


def _set(settings: list[str]) -> list[str]:
    "Settings as the command line takes them."
    return [word for setting in settings for word in ("--set", setting)]


def group(store: Path):
    "The groups of look-alike slices of a store."
    from ctseg.data.splits import near_duplicates
    from ctseg.data.store import read_store
    groups = near_duplicates(read_store(store).images)
    print(groups.max() + 1, "groups")


def keep(count: int, name: str, seconds: float, peak: float, out: Path):
    "Put a figure among the results."
    rows = json.loads(out.read_text()) if out.exists() else []
    known = next((r for r in rows if r["slices"] == count), {"slices": count})
    known[name] = {"seconds": seconds, "peak MB": peak}
    rows = [r for r in rows if r["slices"] != count] + [known]
    out.write_text(json.dumps(sorted(rows, key=lambda r: r["slices"]), indent=1))


def measure(count: int, work: Path, only: list[str], results: Path):
    "Seconds and peak of every command, or some, at one size."
    folder = work/str(count)
    out = folder/"out.txt"
    if not (folder/"classes.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        measured([Path(__file__), "--make", count, "--work", folder, out])
    for name in ("folders", "stores"): (folder/name).mkdir(exist_ok=True)
    for name, words in commands(folder).items():
        if only and name not in only: continue
        seconds, peak, _ = measured([*words, out])
        keep(count, name, seconds, peak, results)
        print(count, name, seconds, peak, flush=True)


def main():
    parser = options(__doc__, RESULTS)
    parser.add_argument("--alike", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alike: return group(args.alike)
    if args.make: return make(args.make, args.work)
    for count in args.counts: measure(count, args.work, args.only, args.out)


if __name__ == "__main__": main()
