# %% [markdown]
# # Options for slices
#
# > What `ctseg import png` and `ctseg export rle` take beyond the options of volumes.
#
# - skip_showdoc: true

# %%
#| default_exp cli.slices

# %%
#| export
from pathlib import Path
from typing import Optional

import typer

from ctseg.core.errors import InputError

# %%
#| hide
from fastcore.test import test_eq, test_fail


# %% [markdown]
# `ctseg import` and `ctseg export` are one command each for many kinds of data. Volumes and slices need different options; this page has those for slices (PNG files and
# run-length codes). An option that a kind does not take is refused, not ignored.

# %%
#| export
def without_none(options: dict) -> dict:
    "The options that were given."
    return {name: value for name, value in options.items() if value is not None}


def fitting_options(kind: str, takes, options: dict, command: str = "import") -> dict:
    "The options that were given, if this kind takes them; `InputError` for one that it does not."
    given = without_none(options)
    for name in given:
        if name not in takes:
            raise InputError(f"--{name.replace('_', '-')} is not an option of `ctseg {command} {kind}`")
    return given


# %% [markdown]
# Options that were left out are dropped. One that belongs to another kind of import is refused.

# %%
print(fitting_options("dicom", {"rename"}, {"rename": "names.json", "key": None}))
test_eq(fitting_options("dicom", {"rename"}, {"rename": "names.json", "key": None}), {"rename": "names.json"})
test_fail(
    lambda: fitting_options("nifti", {"classes"}, {"gaps": True}),
    contains="--gaps is not an option",
)

# %% [markdown]
# ## Import

# %%
#| export
PLACES = typer.Argument(
    metavar="SRC OUT",
    help="the folder to read and the challenge folder to write; for png three: IMAGES MASKS OUT, "
         "with MASKS a folder or a CSV of run-length codes. A patients.json in SRC, {case: patient}, "
         "keeps the scans of a patient together (nifti)",
)
AS_STORE = typer.Option(
    "--store",
    help="write a store (an OUT such as data.zarr) in place of a challenge folder: for more slices than "
         "memory holds",
)
EVERY = typer.Option(help="take each n-th slice; left out: each (volumes)")
PER_VOLUME = typer.Option(
    help="at most so many slices of a volume, drawn at random; left out: all (nifti, dicom, nnunet), "
         "8 (openkbp) or 2 (totalsegmentator)",
)

# %%
print(PLACES.help[:61])

# %%
#| export
TEST = typer.Option(help="images to predict, which become test-images/ (png)")
PATIENTS = typer.Option(
    help="a CSV or JSON, image to patient, or a regular expression whose bracket is the patient "
         "in a file name; left out: near-duplicates count as one patient (png)",
)
ORDER = typer.Option(help="of run-length codes: column (down the columns, the default) or row (png, rle)")
FIRST = typer.Option(
    help="of run-length codes: the number of the first pixel, 1 (the default) or 0 (png, rle)",
)
OVERLAP = typer.Option(
    help="where two masks claim a pixel: refuse (the default), or smaller: the smaller one wins (png)",
)
SCALE = typer.Option(help="Hounsfield units a step of a 16-bit value; left out: 1 (png)")
OFFSET = typer.Option(help="Hounsfield units at the 16-bit value 0, often -1024; left out: 0 (png)")


# %%
#| export
def png_options(shared: dict, only: dict) -> dict:
    "How `import_png` shall read images and masks, from the options that were given."
    from ctseg.io.mask_labels import Labelling
    from ctseg.io.pixels import Grey
    from ctseg.io.png import Pictures
    from ctseg.io.rle import Coding
    def given(names: str) -> dict:
        return without_none({name: (shared | only)[name] for name in names.split()})
    labelling = Labelling(coding=Coding(**given("order first")), **given("classes annotated overlap"))
    grey = Grey(**given("window scale offset"))
    return {"labelling": labelling, "pictures": Pictures(grey, **given("size test patients"))}


# %%
blank = dict.fromkeys("classes annotated overlap order first window scale offset size test patients".split())
print(png_options(blank | dict(window="soft", offset=-1024), {})["pictures"].grey)


# %%
#| export
def where_to(kind: str, places: list[Path]) -> list[Path]:
    "The folders of an import: two, or three for png; `InputError` for another number."
    words = "IMAGES MASKS OUT" if kind == "png" else "SRC OUT"
    if len(places) != len(words.split()):
        raise InputError(f"`ctseg import {kind}` takes {words}, but {len(places)} were given")
    return places


# %% [markdown]
# `import png` needs three paths:

# %%
print(*where_to("png", [Path("images"), Path("masks"), Path("out")]))
test_fail(
    lambda: where_to("png", [Path("images"), Path("out")]),
    contains="takes IMAGES MASKS OUT, but 2 were given",
)

# %% [markdown]
# ## Export

# %%
#| export
GIVEN = typer.Argument(
    help="a challenge folder; or the submission itself, of square images (rle); or a run folder (onnx)",
)
LIKE = typer.Option(help="a sample submission, whose columns, rows and order are kept (rle)")
FORM = typer.Option(
    help="without --like: long (id,class,rle; the default), joined (id_class,rle) or wide (a column for each "
         "class) (rle)",
)
IDS = typer.Option(help="images called by stem, 007 (the default), or by name, 007.png (rle)")
VALUES = typer.Option(help="a JSON or CSV of the values by which the sample calls classes (rle)")


# %%
#| export
def write_rle(folder: Path, masks: Optional[Path], out: Path, options: dict) -> dict:
    "Write run-length codes of the masks for a challenge folder, or of a submission given in its place."
    from ctseg.io.rle import Coding
    from ctseg.io.rle_export import Sheet, export_rle
    repeated = [name for name in ("form", "ids") if options.get("like") and options.get(name)]
    if repeated:
        raise InputError(f"--{repeated[0]}: --like SAMPLE.csv says that already; leave one of them out")
    if options.get("classes") and not options.get("like"):
        raise InputError("--classes says by which values a sample calls classes; give --like SAMPLE.csv too")
    coding = Coding(**without_none({name: options.pop(name) for name in ("order", "first")}))
    sheet = Sheet(coding=coding, **without_none(options))
    if masks is None and folder.name.endswith((".csv", ".csv.gz")):
        return export_rle(folder, out, None, sheet)
    if masks is None:
        raise InputError("`ctseg export rle` needs --masks SUBMISSION.csv, "
                         "or the submission in place of the folder")
    return export_rle(masks, out, folder, sheet)


# %% [markdown]
# Codes are made of predicted masks, so these must be given:

# %%
test_fail(
    lambda: write_rle(Path("my_data"), None, Path("s.csv"), dict(order=None, first=None)),
    contains="needs --masks",
)
