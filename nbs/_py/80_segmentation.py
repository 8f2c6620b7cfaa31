# %% [markdown]
# # From a scan to a segmentation
#
# > Runs and scans in; DICOM SEG, RTSTRUCT or NIfTI out, with volumes in millilitres and a page to look at.
#
# - skip_showdoc: true

# %%
#| default_exp segmentation

# %%
#| export
import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ctseg import __version__
from ctseg.core.anatomy import ClassMap
from ctseg.core.arguments import checks_arguments, options_of
from ctseg.core.errors import InputError, did_you_mean, some_of
from ctseg.core.folders import alone_in
from ctseg.core.json_files import write_json
from ctseg.core.paths import disk_errors, disk_full, refuse_inside
from ctseg.core.schema import check_whole
from ctseg.inference.engine import engine_of
from ctseg.io.dicom_seg import make_segmentation
from ctseg.io.neighbours import step_mm
from ctseg.io.nifti import save_labels
from ctseg.io.outputs import new_folder
from ctseg.io.rtstruct_write import make_rtstruct
from ctseg.io.slicing import Slicing
from ctseg.io.snomed import snomed
from ctseg.io.volumes import Volume
from ctseg.prediction.predictor import Predictor, members_of_runs
from ctseg.prediction.prepare import prepare
from ctseg.prediction.scans import Found, OpenScan, Scan, find_scans
from ctseg.prediction.trained_slicing import choose_slicing, other_distance, trained_slicings
from ctseg.prediction.volumes import class_rows_of, label_volume
from ctseg.report.page import write_page
from ctseg.report.scans import montage, scan_record, scans_page
from ctseg.runs.folder import Run, write_rows
from ctseg.training.memory import out_of_memory

# %%
#| hide
from dataclasses import replace

import shutil

import nibabel as nib
import torch
from fastcore.test import test_eq, test_fail
from torch import nn

from ctseg.core.device import pick_device
from ctseg.inference.loop import Member
from ctseg.io.toy_dicom import HEAD_CLASSES, PATIENT, clinic_planes, head_planes, write_series


# %% [markdown]
# Everything is here already: [scans](prediction/70_scans.ipynb) are found, [volumes](prediction/75_volumes.ipynb) are predicted and measured,
# and [SEG](io/76_dicom_seg.ipynb), [RTSTRUCT](io/77_rtstruct_write.ipynb) and NIfTI are written. This page joins them into one call,
# `ctseg.segment`, and says what happens when a scan of many is broken. [The guide](guides/segment.ipynb) shows it at work.
#
# The "network" of this page tells bone, brain and air apart by their brightness; in your own work it is the folder of a run.

# %%
class ByBrightness(nn.Module):
    "Probabilities [B, 4, H, W]: skull where it is bright, brain where it is grey."
    activation = "sigmoid"

    def forward(self, x):
        skull, brain = x > .95, (x > .45) & (x < .54)
        none = torch.zeros_like(x)
        return torch.cat([.9*skull, .8*brain, none, none], 1)

    def probabilities(self, logits): return logits


network = ByBrightness()
predictor = Predictor([Member(network, network)], HEAD_CLASSES, pick_device("cpu"))
work = Path(tempfile.mkdtemp())
truth = {
    name: write_series(work/"export"/name, clinic_planes()[name])
    for name in ("axial", "oblique, unevenly spaced")
}
write_series(work/"export"/"lacks a slice", head_planes(12), PatientName="Somebody")
next((work/"export"/"lacks a slice").glob("IM0004")).unlink()

# %% [markdown]
# ## What can be asked for

# %%
#| export
FORMATS = ("dicom-seg", "rtstruct", "nifti")


# %%
#| export
@dataclass(frozen=True)
class SegmentOptions:
    "What is seldom given to `segment`. Raises `InputError` for an impossible one."
    keep_patient: bool = False                    # copy what a DICOM scan says of the patient and the study
    gaps: bool = False                            # take what looks like missing slices
    window: str | tuple[float, float] | None = None # a name or (level, width) in HU; None: as trained
    size: int | None = None                       # side of the images; None: as trained
    spacing: float | str | None = None            # mm per pixel, or "fit"
    device: str = "auto"
    batch_size: int = 16                          # slices at a time
    views: int = 1                                # of each slice, averaged, see `tta_views`
    engine: str = "auto"                          # what computes: auto, torch, openvino or onnx
    progress: bool = False                        # show a bar
    pictures: int = 100                           # scans with a picture on the page

    def __post_init__(self):
        check_whole("batch_size", self.batch_size)
        check_whole("pictures", self.pictures, 0)
        Slicing(**self.given)
        if self.window == "random":
            raise InputError("window 'random': scans need a fixed window, such as soft, lung or bone")

    @property
    def given(self) -> dict:
        "What was said of how to cut, as fields of `Slicing`."
        named = {"window": self.window, "size": self.size, "spacing": self.spacing}
        return {name: value for name, value in named.items() if value is not None}


# %%
print(SegmentOptions(window="lung").given)
test_fail(lambda: SegmentOptions(window="lnug"), contains="did you mean lung")


# %%
#| export
def check_formats(formats: str | Sequence[str] | None) -> list[str]: # empty: what suits each scan
    "The formats asked for. Raises `InputError` for one that does not exist."
    names = [formats] if isinstance(formats, str) else list(formats or [])
    names = [name.strip() for text in names for name in text.split(",")]
    for name in names:
        if name not in FORMATS: raise did_you_mean("format", name, FORMATS)
    return list(dict.fromkeys(names))


# %%
print(check_formats("dicom-seg,rtstruct"), check_formats(None))
test_fail(lambda: check_formats(["rtstrukt"]), contains="did you mean rtstruct")


# %% [markdown]
# ## Files
#
# The files of a scan appear together, when all of them are complete. A SEG or RTSTRUCT without any structure is not written.

# %%
#| export
def _formats_of(scan: Scan, formats: list[str]) -> list[str]:
    "The formats to write for a scan; `InputError` if none is possible."
    if not formats: return ["dicom-seg" if scan.kind == "dicom" else "nifti"]
    possible = [name for name in formats if scan.kind == "dicom" or name == "nifti"]
    if possible: return possible
    kinds = " or ".join(formats)
    raise InputError(f"{scan.source}: a NIfTI file has no DICOM slices that {kinds} could refer to; "
                     "take the format nifti")


# %%
#| export
def write_results(
    opened: OpenScan,
    labels: np.ndarray, # uint8 [I,J,K]
    classes: ClassMap,
    folder: Path, # of this scan alone
    name: str,
    formats: list[str],
    keep_patient: bool,
) -> list[str]: # names of the files
    "Write the labels of a scan in each format."
    if "nifti" in formats:
        save_labels(labels, opened.volume.affine, opened.volume.positions, folder/f"{name}.nii.gz")
    about = (opened.series, labels, classes, name, keep_patient)
    if labels.any() and "dicom-seg" in formats:
        make_segmentation(*about).save_as(folder/f"{name}.seg.dcm")
    if labels.any() and "rtstruct" in formats:
        make_rtstruct(*about).save_as(folder/f"{name}.rtstruct.dcm", enforce_file_format=True)
    return sorted(path.name for path in folder.iterdir())


# %%
found = find_scans([work/"export"])
first = found.scans[0]
opened = first.open()
(work/"one").mkdir()
print(write_results(opened, truth["axial"], HEAD_CLASSES, work/"one", "v000", list(FORMATS), False))
test_fail(lambda: _formats_of(replace(first, kind="nifti"), ["rtstruct"]), contains="take the format nifti")


# %%
#| export
@contextlib.contextmanager
def files_of_a_scan(out: Path) -> Iterator[Path]:
    "A folder to write into; its files move to `out` when the block ends well."
    beside = os.path.abspath(out)  # libraries take a leading ~ for somebody's home
    with tempfile.TemporaryDirectory(prefix=".", dir=beside) as tmp:
        yield Path(tmp)
        for path in sorted(Path(tmp).iterdir()): os.replace(path, out/path.name)


# %%
with contextlib.suppress(KeyError), files_of_a_scan(work/"one") as folder:
    (folder/"half").write_text("…")
    raise KeyError
print("half" in [path.name for path in (work/"one").iterdir()])


# %% [markdown]
# ## One scan

# %%
#| export
@dataclass
class SegmentJob:
    "What all scans have in common."
    predictor: Predictor
    slicing: Slicing
    formats: list[str]
    options: SegmentOptions
    out: Path

    @property
    def classes(self) -> ClassMap:
        "The classes of the runs."
        return self.predictor.classes


def size_in_words(opened: OpenScan) -> str:
    "Voxels and their size."
    volume = opened.volume
    mm = np.linalg.norm(volume.affine[:3, :3], axis=0)
    uneven = ", slices unevenly spaced" if volume.positions is not None else ""
    voxels = " x ".join(map(str, volume.hu.shape))
    return f"{voxels} voxels of {' x '.join(f'{v:.3g}' for v in mm)} mm{uneven}"


# %%
#| export
@dataclass
class ScanResult:
    "What was found on a scan."
    name: str
    source: str # its path, without the patient unless asked
    size: str # in words
    files: list[str]
    rows: list[dict] # a structure each, from `class_rows_of`
    seen: float # share of the slices' area that the network has seen
    page: dict # for the report page
    notes: tuple[str, ...] = () # what is to be known of it

    @property
    def facts(self) -> dict:
        "What the summary says of the scan."
        kept = {"name": self.name, "source": self.source, "size": self.size, "files": self.files}
        return kept | {"structures": self.rows}


# %%
print(size_in_words(opened))


# %%
#| export
def scan_notes(job: SegmentJob, scan: Scan, volume: Volume) -> tuple[str, ...]:
    "What is to be known of a scan: its own notes, and slices that are not as far apart as in training."
    step = round(step_mm(volume.affine, job.slicing.orientation, volume.positions), 2)
    warning = other_distance(job.predictor, [step, step])
    return volume.notes + ((f"{scan.source}: {warning}",) if warning else ())


# %%
#| export
def segment_scan(job: SegmentJob, scan: Scan, picture: bool) -> ScanResult:
    "Open a scan, predict it, and write its files. Raises `InputError` for one that is no volume."
    formats, keep = _formats_of(scan, job.formats), job.options.keep_patient
    opened = scan.open()
    predicted = label_volume(job.predictor, opened.volume, job.slicing, job.options.batch_size)
    with disk_errors(job.out), files_of_a_scan(job.out) as folder:
        files = write_results(opened, predicted.labels, job.classes, folder, scan.name, formats, keep)
    rows = class_rows_of(predicted, opened.volume, job.slicing, list(job.classes.names))
    image = None
    if picture:
        image = montage(opened.volume, predicted.labels, job.slicing, job.classes)
    size = size_in_words(opened)
    page = scan_record(scan.name, scan.source, size, rows, image)
    found = rows, predicted.seen, page, scan_notes(job, scan, opened.volume)
    return ScanResult(scan.name, scan.source, size, files, *found)


# %%
job = SegmentJob(predictor, Slicing(), ["nifti"], SegmentOptions(), work/"one")
result = segment_scan(job, found.scans[-1], picture=False)
print(result.files, result.size)
for row in result.rows[:2]: print(row)


# %% [markdown]
# ## All of them
#
# A broken scan is noted, and the next one begins. After a full disk none does: each would be computed in vain. What an unexpected error says is not repeated, since it may quote the patient's name.

# %%
#| export
@dataclass
class Segmented:
    "What `segment` has done."
    out: Path
    done: list[ScanResult] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list) # source, problem
    passed_over: Counter = field(default_factory=Counter) # what was no scan: kind of file → how many
    notes: list[str] = field(default_factory=list) # what a user must know of the results
    about: dict = field(default_factory=dict) # runs, rule, engine, precision and slicing

    @property
    def page(self) -> Path:
        "The page, missing if the disk had no room for it."
        return self.out/"report.html"

    @property
    def table(self) -> list[dict]:
        "A row for each scan and structure."
        return [{"scan": scan.name, "source": scan.source, **row} for scan in self.done for row in scan.rows]

    @property
    def summary(self) -> dict:
        "Everything in plain values."
        failed = [{"source": source, "problem": problem} for source, problem in self.failed]
        rest = {"failed": failed, "passed_over": dict(self.passed_over), "notes": self.notes}
        return self.about | {"scans": [scan.facts for scan in self.done]} | rest


# %%
print(Segmented(work, [result]).summary["scans"][0]["structures"][0])


# %%
#| export
def problem_of(error: Exception) -> str:
    "What went wrong with a scan, in one line."
    if isinstance(error, InputError): return str(error)
    if out_of_memory(error):
        return "out of memory; take a smaller batch_size (--batch-size)"
    return (f"could not be read or written ({type(error).__name__}); "
            "it is damaged, or ctseg has a fault: please report it")


# %%
print(
    problem_of(InputError("x: a damaged file")),
    "|",
    problem_of(MemoryError()),
    "|",
    problem_of(ZeroDivisionError("Doe")),
)


# %%
#| export
def _work_through(job: SegmentJob, scans: list[Scan], result: Segmented):
    "Segment one scan after the other; what fails is noted."
    disable = None if job.options.progress else True  # None: only a terminal gets a bar
    for i, scan in enumerate(tqdm(scans, "segment", unit="scan", disable=disable)):
        try:
            result.done.append(segment_scan(job, scan, i < job.options.pictures))
        except Exception as error:  # of other people's files and libraries, of any kind
            result.failed.append((scan.source, problem_of(error)))
            if disk_full(error):
                result.failed += [(later.source, problem_of(error)) for later in scans[i + 1:]]
                return


# %%
#| export
def _notes_of(result: Segmented, job: SegmentJob) -> list[str]:
    "What is to be known of single scans, and of the results as a whole."
    notes = [note for scan in result.done for note in scan.notes]
    seen = min((scan.seen for scan in result.done), default=1)
    if seen < 1:
        notes.append(f"slices were cropped to {job.slicing.size} pixels: up to {1 - seen:.0%} "
                     "of their area was not looked at, and is background in the results")
    private = [name for name in job.classes.names if snomed(name).structure is None]
    if private and any(name.endswith(".dcm") for scan in result.done for name in scan.files):
        notes.append(f"without a SNOMED CT code, written under a private one: {some_of(private)}")
    if len(result.done) > job.options.pictures:
        notes.append(f"the page shows pictures of the first {job.options.pictures} scans")
    return notes


# %%
#| export
COLUMNS = ("scan", "source", "structure", "ml", "slices", "confidence", "cut_off")

TABLES = ("volumes.csv", "volumes.json", "class_names.json")

def write_tables(result: Segmented, classes: ClassMap):
    "Write the `TABLES`."
    write_rows(result.table, result.out/"volumes.csv", COLUMNS)
    write_json(result.summary, result.out/"volumes.json")
    classes.to_json(result.out/"class_names.json")

def write_report(result: Segmented, classes: ClassMap):
    "Write `report.html`. A full disk is noted: the page only repeats what the tables say."
    pages = [scan.page for scan in result.done]
    model = f"{', '.join(result.about['runs']) or 'a model'} (ctseg {__version__})"
    page = scans_page(pages, classes, model, result.notes, result.failed)
    try:
        write_page(page, result.page)
    except InputError as error:
        if not disk_full(error): raise
        result.notes.append(str(error))


# %%
#| export
def _prepared(runs, options: SegmentOptions) -> Predictor:
    "The predictor of some runs; one that is loaded already as it is."
    if isinstance(runs, Predictor): return runs
    predictor = prepare(runs, None if options.device == "auto" else options.device, options.views)
    return predictor.by_engine(options.engine)

def _about(predictor: Predictor, slicing: Slicing) -> dict:
    "What made the results."
    runs = [member.name for member in members_of_runs(predictor.members)]
    engines = sorted({engine_of(member.model) for member in predictor.members})
    computed = {"engine": " and ".join(engines), "precision": predictor.plan.precision}
    how = {name: asdict(slicing)[name] for name in ("orientation", "window", "size", "spacing")}
    return {"ctseg": __version__, "runs": runs, "rule": str(predictor.rule), **computed, "slicing": how}


# %%
#| export
def _refuse_impossible(found: Found, formats: list[str]):
    "`InputError` if no scan can be written in any of the formats."
    if found.scans and all(scan.kind == "nifti" for scan in found.scans):
        _formats_of(found.scans[0], formats)

def _refuse_all_failed(result: Segmented):
    "`InputError` if no scan could be segmented."
    if result.done: return
    source, problem = result.failed[0]
    first = problem if source in problem else f"{source}: {problem}"
    if len(result.failed) == 1: raise InputError(first)
    raise InputError(f"none of {len(result.failed)} scans could be segmented; the first: {first}")


# %% [markdown]
# A folder with results always has the tables that go with them. Where a full disk has no room for these, the last scan gives up its files.

# %%
#| export
def _give_up_last(result: Segmented, error: InputError):
    "Remove the files of the last scan, and say why it is not there."
    last = result.done.pop()
    for name in last.files: (result.out/name).unlink()
    result.failed.append((last.source, str(error)))

def _write_tables_that_fit(result: Segmented, job: SegmentJob):
    "Write the tables of as many scans as there is room for; `InputError` if there is no room at all."
    notes = result.notes
    while result.done:
        result.about = _about(job.predictor, job.slicing)  # only now it is known which engines answered
        result.notes = notes + _notes_of(result, job)
        try:
            return write_tables(result, job.classes)
        except InputError as error:
            if not disk_full(error): raise
            _give_up_last(result, error)
            full = error
    for name in TABLES: (result.out/name).unlink(missing_ok=True)
    raise full


# %%
#| export
def _paths_of(scans: str | Path | Iterable[str | Path], out: Path) -> list[str | Path]:
    "The scans as a list; `InputError` for none, and for an output in one of their folders."
    paths = [scans] if isinstance(scans, (str, Path)) else list(scans)
    if not paths:
        raise InputError("segment: no scans were given; give NIfTI files, or folders of DICOM or NIfTI")
    refuse_inside(out, paths)
    return paths


# %%
#| export
@checks_arguments
def segment(
    runs: str | Path | Run | list[str | Path | Run] | Predictor,
    scans: str | Path | Iterable[str | Path],
    out: str | Path,
    formats: str | Sequence[str] | None = None,
    **options,
) -> Segmented:
    """Segment scans of any number, one at a time, onto their own grids.

    runs: one, or several that are averaged. scans: NIfTI files, and folders with DICOM or NIfTI in or below them.
    out: the folder to write, new. formats: dicom-seg, rtstruct, nifti; None: SEG for DICOM, else NIfTI. options: see
    `SegmentOptions`. A broken scan does not end the rest, a full disk does: see `failed`.
    Raises `InputError` if none could be segmented.
    """
    given = options_of(SegmentOptions, options, "segment")
    wanted, out = check_formats(formats), new_folder(out, filled=True)
    paths = _paths_of(scans, out)
    predictor = _prepared(runs, given)
    slicing, notes = choose_slicing(trained_slicings(predictor), given.given)
    found = find_scans(paths, given.gaps, given.keep_patient, slicing.orientation)
    _refuse_impossible(found, wanted)
    job = SegmentJob(predictor, slicing, wanted, given, out)
    result = Segmented(out, [], found.broken, found.passed_over, notes + found.notes)
    with alone_in(out, out):
        new_folder(out, filled=True)  # another command may have been faster
        try:
            _work_through(job, found.scans, result)
            _refuse_all_failed(result)
        finally:
            if result.done:
                _write_tables_that_fit(result, job)
                write_report(result, job.classes)
    return result


# %% [markdown]
# Three series, of which one lacks a slice:

# %%
result = segment(predictor, work/"export", work/"results", ["dicom-seg", "rtstruct", "nifti"])
print(*sorted(path.name for path in result.out.iterdir()), sep="  ")
print("failed:", *result.failed)
print("notes:", *result.notes, sep="\n- ")
for row in result.table[:3]: print(row)

# %% [markdown]
# Everything lies on the scan's own grid, and nothing in the folder names the patient.

# %%
image = nib.load(result.out/"v001.nii.gz")
test_eq(image.shape, truth["oblique, unevenly spaced"].shape)
for path in result.out.iterdir():
    assert not any(value.encode() in path.read_bytes() for value in PATIENT.values())
test_fail(lambda: segment(predictor, work/"export"/"lacks a slice", work/"never"), contains="missing slice")
assert not (work/"never").exists()
shutil.rmtree(work)
