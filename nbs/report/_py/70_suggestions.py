# %% [markdown]
# # The page of suggestions
#
# > What to annotate next, as a page: each slice with the outlines that the network proposes.

# %%
#| default_exp report.suggestions

# %%
#| export
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.atomic import check_file_place
from ctseg.core.errors import InputError
from ctseg.data.sources import read_slices
from ctseg.io.neighbours import with_neighbours
from ctseg.prediction.prepare import prepare
from ctseg.prediction.suggest import Suggestion, Suggestions, suggest, write_suggestions
from ctseg.report.page import fill_template, write_page
from ctseg.report.pictures import picture, rounded
from ctseg.report.scans import outlined

# %%
#| hide
from fastcore.test import test_eq

from ctseg.data.toys import toy_set

# %% [markdown]
# [Which slices these are](../prediction/57_suggest.ipynb) is decided elsewhere; here they are shown. A picture has the slice as it is on the left, and on the right the outlines of the structures to look for, and of no others.

# %%
#| export
LONGER_SIDE = 256 # of a picture, in pixels

def thumbnail(
    image: np.ndarray, # uint8 [H,W]
    label: np.ndarray, # uint8 [H,W]
    ids: list[int], # of the structures to show
    classes: ClassMap,
) -> np.ndarray: # uint8 [h,2w,3]
    "A slice twice: as it is, and with the outlines of some structures."
    shown = np.where(np.isin(label, ids), label, 0).astype(np.uint8)
    scale = LONGER_SIDE/max(image.shape)
    size = (round(image.shape[0]*scale), round(image.shape[1]*scale))
    pair = [outlined(image, mask, classes, size) for mask in (np.zeros_like(shown), shown)]
    return np.concatenate(pair, 1)


# %%
toys, truth = toy_set(4, 4)
test_eq(thumbnail(toys.images[0], truth[0], [1, 2], toys.classes).shape, (256, 512, 3))


# %%
#| export
def slice_record(found: Suggestions, one: Suggestion, label: np.ndarray) -> dict:
    "What the template of the page reads of a slice, with the label map uint8 [H,W] predicted for it."
    rows = []
    for id, gain in zip(one.classes, one.gains):
        presence = float(found.presence[one.position, id - 1])
        dice = rounded(found.expected_dice[one.position, id - 1], 4)
        rows.append({"id": id, "gain": gain, "presence": presence, "dice": dice})
    image = thumbnail(found.slices.images[one.position], label, one.classes, found.slices.classes)
    return {"name": found.slices.names[one.position], "rows": rows, "picture": picture(image)}


def suggestions_page(
    found: Suggestions,
    model: str, # what proposes, in words
) -> str:
    "The page as HTML, complete in itself."
    slices = [slice_record(found, one, label) for one, label in zip(found.chosen, found.labels)]
    return fill_template("suggestions.html", found.slices.classes, slices=slices, model=model)


# %%
one = Suggestion(0, .5, [1, 2], [.3, .2])
found = Suggestions(toys, [one], truth[:1], np.full((4, 3), .9), np.full((4, 3), np.nan))
page = suggestions_page(found, "runs/first")
print(len(page) > 5000, "not drawn" in page, "lung_right" in page)


# %%
#| export
def suggest_files(
    runs: list[str], # run folders, whose probabilities are averaged
    data: str | Path, # the challenge folder they were trained on, or a store
    out: str | Path, # the CSV to write; the page lies beside it, as .html
    count: int = 20,
    annotated: str = "json", # see `read_challenge`
    device: str = "auto",
    batch_size: int = 16,
) -> dict: # facts
    "Write which training slices of a folder to annotate next, and which structures on them."
    out = Path(out)
    if out.suffix != ".csv":
        raise InputError(f"{out}: expected the name of a .csv; the page is written beside it as .html")
    for path in (out, out.with_suffix(".html")): check_file_place(path)
    predictor = prepare(runs, device)
    slices = read_slices(data, annotated=annotated)
    slices = with_neighbours(slices, data, "train", predictor.context)
    found = suggest(predictor, slices, count, batch_size)
    names = ", ".join(Path(run).name for run in runs)
    page = suggestions_page(found, names)
    write_page(page, out.with_suffix(".html"))  # first: the list is the sign that both are there
    write_suggestions(found, out)
    structures = sum(len(one.classes) for one in found.chosen)
    return {"slices": len(found.chosen), "structures on them": structures, "asked about": len(found.slices)}
