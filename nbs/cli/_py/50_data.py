# %% [markdown]
# # Commands for data
#
# > `ctseg check`, `import` and `phantom`: check a folder of slices, make one from other data, or draw one.
#
# - skip_showdoc: true

# %%
#| default_exp cli.data

# %%
#| export
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer

from ctseg.cli.console import app, print_facts
from ctseg.cli.options import (
    Annotations, Folder, begins, named_classes, refuse_replacing, wanted_window,
)
from ctseg.cli.slices import (
    AS_STORE, EVERY, FIRST, OFFSET, ORDER, OVERLAP, PATIENTS, PER_VOLUME, PLACES, SCALE, TEST,
    fitting_options, png_options, where_to, without_none,
)
from ctseg.core.atomic import check_place
from ctseg.core.errors import did_you_mean
from ctseg.core.paths import refuse_inside

# %%
#| hide
from fastcore.test import test_eq, test_fail
from typer.testing import CliRunner

# %% [markdown]
# All training starts from a *challenge folder*: images, masks, and which classes were examined on each image. The commands of this page check such a folder, or make one:
#
# ```sh
# ctseg import dicom scans my_data      # from DICOM; also from NIfTI, PNG and others
# ctseg phantom my_phantom              # from nothing but a seed
# ctseg check my_data
# ```

# %%
#| export
AGAINST = typer.Option(help="check this submission against the folder's test images")


@app.command(epilog="ctseg check my_data")
def check(
    data: Folder,
    submission: Annotated[Optional[Path], AGAINST] = None,
    annotated: Annotations = "json",
):
    "Validate a challenge folder, a store, or a submission against a folder."
    from ctseg.data.challenge import check_submission
    from ctseg.data.sources import check_slices
    if submission:
        facts = check_submission(submission, data)
    else:
        facts = check_slices(data, annotated)
    print_facts(facts)
    print("ok")


# %%
runner = CliRunner()
print(runner.invoke(app, ["check", "../../data_sample"]).output)


# %% [markdown]
# ## Other people's data in
#
# Hospitals store volumes; training needs slices. `import` cuts volumes into slices and notes where each slice came from. Some
# competitions have slices already, with masks as PNG files or as run-length codes; `import` reads these too.

# %%
#| export
def importers() -> dict[str, Callable[..., dict]]:
    "Each kind of data that can be imported, and the function that does it."
    from ctseg.integrations.nnunet_import import import_nnunet
    from ctseg.io.dicom_import import import_dicom
    from ctseg.io.nifti_import import import_nifti
    from ctseg.io.openkbp import import_openkbp
    from ctseg.io.png import import_png
    from ctseg.io.totalsegmentator import import_totalsegmentator
    return {
        "openkbp": import_openkbp,
        "nifti": import_nifti,
        "dicom": import_dicom,
        "totalsegmentator": import_totalsegmentator,
        "png": import_png,
        "nnunet": import_nnunet,
    }


# %%
print(", ".join(importers()))

# %%
#| export
KINDS = ("openkbp", "nifti", "dicom", "totalsegmentator", "png", "nnunet")

KIND = typer.Argument(
    help="openkbp, nifti, dicom, totalsegmentator, png or nnunet", autocompletion=begins(KINDS)
)
SIZE = typer.Option(
    help="side of the square images in pixels: of larger slices the part around the body is kept "
         "(openkbp, nifti, dicom, nnunet; left out: the longest side of any slice), or they are shrunk "
         "(totalsegmentator; left out: 256), or refused (png; left out: as the images are)",
)
ZEROS = typer.Option(
    help="what a zero of a mask, or a missing one, means: json (the default: annotated_labels.json, or "
         "what was outlined, tells), all (everything was looked for) or present (only what has pixels was) "
         "(nifti, png, nnunet)",
)

# %%
test_eq(set(KINDS), set(importers()))

# %%
#| export
KEY = typer.Option(
    help="write here, for yourself, which volume came from which file; it may name patients "
         "(nifti, dicom, nnunet)",
)
WINDOW = typer.Option(
    help="which Hounsfield units become grey: soft, lung, bone, wide, or LEVEL,WIDTH such as 40,400, or of "
         "volumes random, another for each slice; left out: soft (nifti, dicom, nnunet) or random (openkbp, "
         "totalsegmentator); of png for 16-bit images only",
)
NAMES = typer.Option(
    help="class_names.json, or the folder of a run that knows them (nifti, dicom, totalsegmentator); "
         "or a JSON or CSV of values and names (png)",
)
TEST_SHARE = typer.Option(help="share of the patients set aside as a test, 0 to 1 (nifti, dicom, nnunet)")
RENAME = typer.Option(
    help="a JSON, {label of a structure: name of its class}; OUT/label is for one of several folders",
)
GAPS = typer.Option("--gaps", help="take a gap that looks like a missing slice as it is (dicom)")
SKIP = typer.Option(
    "--skip-damaged",
    help="leave out what is damaged and list it at the end (nifti, dicom, totalsegmentator, nnunet)",
)
WORKERS = typer.Option(
    help="processes that cut volumes; by default as many as processors, if there are many volumes "
         "(nifti, dicom, totalsegmentator, nnunet)",
)

# %%
print("--rename", RENAME.help)


# %%
#| export
def work_options(kind: str, takes, work: dict) -> dict:
    "How the work is to be done, for an importer that can be told; `InputError` for one that cannot."
    if "work" in takes: return work | {"progress": True}
    return fitting_options(kind, takes, {name: value or None for name, value in work.items()})


# %%
#| export
def import_kind(
    kind: str, places: list[Path],
    cut: dict, # how volumes are cut
    options: dict, # of several kinds
    only_png: dict,
    work: dict, # workers, skip_damaged
) -> dict:
    "Import one kind of data, with the options that were given; facts."
    kinds = importers()
    if kind not in kinds:
        raise did_you_mean("kind of data", kind, kinds)
    *read, out = places = where_to(kind, places)
    if kind == "png":  # whose own images it would find the next time
        refuse_inside(out, [*read, only_png["test"]])
    check_place(out)  # before hours of looking through an archive
    takes = inspect.signature(kinds[kind]).parameters
    how = work_options(kind, takes, work)
    if kind == "png":
        shared = {"window", "size", "classes", "annotated", "rename"}
        fitting_options(kind, shared, options | cut)
        return kinds[kind](*places, **png_options(options | cut, only_png), rename=options["rename"], **how)
    more = fitting_options(kind, {*takes, "rename"}, options | only_png) | how
    cut = without_none(cut | {"window": wanted_window(cut["window"])})
    slicing = replace(takes["slicing"].default, **cut)
    return kinds[kind](*places, slicing=slicing, **more)


# %% [markdown]
# A misspelt kind, and an option that this kind does not have:

# %%
test_fail(lambda: import_kind("dicm", [], {}, {}, {}, {}), contains="did you mean dicom")
test_fail(lambda: work_options("openkbp", (), {"workers": 2}), contains="--workers is not an option")

# %%
#| export
CUT = "window every per_volume size"  # the options, by what they are for
SHARED = "classes test_share annotated rename gaps key"
ONLY_PNG = "test patients order first overlap scale offset"
WORK = "skip_damaged workers store"

def grouped(given: dict) -> list[dict]:
    "The options of the command, in the four groups; flags and shares that say nothing become None."
    given = given | {name: given[name] or None for name in ("test_share", "gaps")}
    given["classes"] = given["classes"] and named_classes(given["classes"])
    return [{name: given[name] for name in names.split()} for names in (CUT, SHARED, ONLY_PNG, WORK)]


# %%
#| export
@app.command("import", epilog="ctseg import dicom scans my_data --rename names.json")
def import_(
    kind: Annotated[str, KIND],
    places: Annotated[list[Path], PLACES],
    window: Annotated[Optional[str], WINDOW] = None,
    every: Annotated[Optional[int], EVERY] = None,
    per_volume: Annotated[Optional[int], PER_VOLUME] = None,
    size: Annotated[Optional[int], SIZE] = None,
    classes: Annotated[Optional[Path], NAMES] = None,
    test_share: Annotated[float, TEST_SHARE] = 0.0,
    annotated: Annotated[Optional[str], ZEROS] = None,
    rename: Annotated[Optional[Path], RENAME] = None,
    gaps: Annotated[bool, GAPS] = False,
    skip_damaged: Annotated[bool, SKIP] = False,
    workers: Annotated[Optional[int], WORKERS] = None,
    store: Annotated[bool, AS_STORE] = False,
    key: Annotated[Optional[Path], KEY] = None,
    test: Annotated[Optional[Path], TEST] = None,
    patients: Annotated[Optional[str], PATIENTS] = None,
    order: Annotated[Optional[str], ORDER] = None,
    first: Annotated[Optional[int], FIRST] = None,
    overlap: Annotated[Optional[str], OVERLAP] = None,
    scale: Annotated[Optional[float], SCALE] = None,
    offset: Annotated[Optional[float], OFFSET] = None,
):
    "Make a challenge folder, or a store, of volumes, or of images and masks; what nobody contoured stays unknown."
    refuse_replacing([key], [*places, classes, rename])
    facts = import_kind(kind, places, *grouped(locals()))
    print_facts({name: value for name, value in facts.items() if value not in ([], {})})
    print_facts({"store" if store else "challenge folder": places[-1]})


# %%
print(runner.invoke(app, ["import", "dicm", "scans", "out"]).exception)

# %% [markdown]
# ## A folder from a seed
#
# The [phantom](../phantom/90_challenge.ipynb) draws slices of an artificial body, so nobody's data is needed.

# %%
#| export
WHOLE = typer.Option("--truth", help="also write y_train_full.csv: every contour of every training slice")


@app.command(epilog="ctseg phantom my_phantom --labelled 80 --unlabelled 120 --test 50")
def phantom(
    out: Annotated[Path, typer.Argument(help="the challenge folder to write")],
    labelled: Annotated[int, typer.Option(help="annotated training slices")] = 800,
    unlabelled: Annotated[int, typer.Option(help="training slices without annotation")] = 1200,
    test: Annotated[int, typer.Option(help="test slices, with truth")] = 500,
    size: Annotated[int, typer.Option(help="pixels a side")] = 256,
    examined: Annotated[int, typer.Option(help="structures examined on an annotated slice")] = 27,
    truth: Annotated[bool, WHOLE] = False,
    seed: Annotated[int, typer.Option(help="another seed draws other patients")] = 0,
):
    "Write a challenge folder of a procedural body: no patient, full truth, any number of slices."
    from ctseg.phantom import make_phantom
    make_phantom(out, labelled, unlabelled, test, size, seed, truth=truth, examined=examined)
    print_facts({"challenge folder": out})


# %%
print(runner.invoke(app, ["phantom", "--help"]).output[:300])
