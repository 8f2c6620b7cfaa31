# %% [markdown]
# # Export of run lengths
#
# > A submission of label maps becomes a table of run-length codes, in the form that a competition asks for.

# %%
#| default_exp io.rle_export

# %%
#| export
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.core.anatomy import ClassMap
from ctseg.core.atomic import atomic_path, check_file_place
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.filetypes import check_folder
from ctseg.core.json_files import read_json
from ctseg.data.annotations import read_classes
from ctseg.data.images import image_paths, read_pngs
from ctseg.data.lazy import LazyPixels, seen_values
from ctseg.data.spooled import spooled_masks
from ctseg.io.rle import Coding, encode
from ctseg.io.rle_table import Form, find_form, image_of, split_joined
from ctseg.io.value_names import foreground, read_text_table, read_value_names, token_ids

# %%
#| hide
import os
import tempfile

from fastcore.test import test_eq, test_fail

from ctseg.core.json_files import write_json
from ctseg.data.mask_csv import write_masks
from ctseg.io.rle_table import read_codes
from ctseg.io.rle import decode

# %% [markdown]
# Kaggle's competitions want predictions as a table of [run-length codes](92_rle.ipynb). `ctseg export rle` writes it from predicted label maps, and this page is how.
#
# ## The form
#
# Kaggle compares a submission with its solution row by row. So the safest form is that of the sample submission: its columns, its rows and
# their order, with the codes filled in. Without a sample there are three forms to choose from, as in [tables of codes](93_rle_table.ipynb).

# %%
#| export
FORMS = {"long": ["id", "class", "rle"], "joined": ["ImageId_ClassId", "EncodedPixels"], "wide": ["id"]}
IDS = ("stem", "name")

@dataclass(frozen=True)
class Sheet:
    "The form of a table of codes. Raises `InputError` for a choice that there is not."
    form: str = "long" # long, joined or wide
    ids: str = "stem" # images without their ending (007), or with it (007.png)
    coding: Coding = Coding()
    like: str|Path|None = None # a sample submission: its columns, rows and order
    classes: str|Path|None = None # a JSON or CSV of the values that its cells call classes by

    def __post_init__(self):
        if self.form not in FORMS: raise did_you_mean("form", self.form, FORMS)
        if self.ids not in IDS: raise did_you_mean("kind of ids", self.ids, IDS)


# %%
for form, columns in FORMS.items(): print(f"{form:6} {columns}")
test_fail(lambda: Sheet("lng"), contains="did you mean long")

# %% [markdown]
# ## The masks
#
# An image that was put on a larger canvas when it was [imported](96_png.ipynb) is cut out again, so its code counts its own pixels.

# %%
#| export
Place = dict[str, Sequence[int]] # "size" and "corner" of an image on its canvas

class Predicted(Mapping):
    "Label maps by image, uint8 [h,w], each read when it is asked for; and what their numbers mean."
    def __init__(self,
        names: list[str], # of the images
        maps: LazyPixels, # uint8 [N,H,W]
        classes: ClassMap,
        places: dict[str, Place], # of the images that lie on a canvas, by name
    ):
        self.maps, self.classes, self.names, self.places = maps, classes, names, places
        self.rows = {Path(name).stem: row for row, name in enumerate(names)}

    def __len__(self) -> int: return len(self.rows)
    def __iter__(self) -> Iterator[str]: return iter(self.rows)
    def __contains__(self, image) -> bool: return image in self.rows

    def __getitem__(self, image: str) -> np.ndarray:
        number = self.rows[image]
        mask = self.maps[number]
        place = self.places.get(self.names[number], {"size": mask.shape, "corner": (0, 0)})
        row, column = place["corner"]
        height, width = place["size"]
        return mask[row:row + height, column:column + width]


# %%
#| export
def _image_size(folder: Path) -> tuple[int, int]|None:
    "Height and width of the images of a challenge folder."
    for name in ("test-images", "train-images"):
        if (folder/name).is_dir():
            return read_pngs(image_paths(folder/name)[:1]).shape[1:]
    return None


# %%
#| export
def _places(folder: Path) -> dict[str, Place]:
    "Image → its size and corner, from the index of an import; empty without one."
    path = folder/"png_index.json"
    if not path.exists(): return {}
    places = {}
    numbers = []
    try:
        for split in read_json(path)["images"].values():
            places |= split
        for place in places.values():
            numbers += [*place["size"], *place["corner"]]
    except (KeyError, TypeError, AttributeError, ValueError):
        numbers = [None]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise InputError(f"{path}: not the index of an import; make the folder again")
    return places


# %%
work = Path(tempfile.mkdtemp())
os.environ["CTSEG_CACHE"] = str(work/"cache")
write_json({"images": {"test": {"007.png": {"size": [2, 3], "corner": [1, 0]}}}}, work/"png_index.json")
print(_places(work), _places(work/"nowhere"))


# %%
#| export
def _predicted_alone(masks: Path) -> Predicted:
    "Label maps without their challenge folder: classes from a `class_names.json` beside them, or by number."
    classes = None
    if (masks.parent/"class_names.json").exists():
        classes = read_classes(masks.parent)
    names, maps = spooled_masks(masks, classes=classes)
    if classes is None:
        most = max(1, int(np.flatnonzero(seen_values(maps).any(0)).max()))
        classes = ClassMap.from_names([str(id) for id in range(1, most + 1)])
    return Predicted(names, maps, classes, {})

def read_predicted(
    masks, # a submission: a CSV of label maps, as `ctseg predict` writes it
    folder=None, # the challenge folder it is for; `None`: square images, classes by number
) -> Predicted:
    "Label maps by image, each of the size its image had. `InputError` for maps that do not fit the folder."
    if folder is None: return _predicted_alone(Path(masks))
    folder = Path(folder)
    check_folder(folder, "a challenge folder")
    classes = read_classes(folder)
    names, maps = spooled_masks(masks, None, _image_size(folder), classes)
    return Predicted(names, maps, classes, _places(folder))


# %%
maps = np.zeros((2, 4, 4), np.uint8)
maps[0, 1:3, 1] = 1
maps[0, 3, 3] = 2
write_masks(maps, ["007.png", "008.png"], work/"masks.csv")
ClassMap.from_names(["liver", "spleen"]).to_json(work/"class_names.json")
predicted = read_predicted(work/"masks.csv", work)
print({image: mask.shape for image, mask in predicted.items()}, predicted.classes)
test_eq(read_predicted(work/"masks.csv")["007"], maps[0])


# %% [markdown]
# ## Rows

# %%
#| export
def _rows(predicted: Predicted, sheet: Sheet) -> Iterator[list[str]]:
    "The header and the rows of a form."
    names = predicted.classes.names
    header = list(FORMS[sheet.form])
    if sheet.form == "wide": header += names
    yield header
    for image in predicted:
        called = image if sheet.ids == "stem" else f"{image}.png"
        mask = predicted[image]
        codes = {name: encode(mask == id, sheet.coding) for id, name in enumerate(names, 1)}
        if sheet.form == "wide":
            yield [called, *codes.values()]
            continue
        for name, code in codes.items():
            yield [f"{called}_{name}", code] if sheet.form == "joined" else [called, name, code]


# %%
for form in FORMS: print(form, list(_rows(predicted, Sheet(form))))


# %%
#| export
def _asked(row: list[str], form: Form, predicted: Predicted) -> tuple[str|None, str]:
    "The image and the class that a row of a sample asks for."
    cell = row[form.image]
    if form.joined:
        return split_joined(cell, predicted) or (None, "")
    image = image_of(cell, predicted)
    if form.label is None: return image, ""
    return image, row[form.label].strip()


# %%
#| export
def _label_ids(rows, header: list[str], form: Form, predicted: Predicted, sheet: Sheet) -> dict[str, int]:
    "The class ids of the classes that a sample names."
    classes = predicted.classes
    names = dict(enumerate(classes.names, 1))
    if sheet.classes:
        names = read_value_names(sheet.classes)
    for name in foreground(names).values():
        classes.id(name)  # refuses a name that is no class
    if form.name == "single":
        if len(classes) == 1: return {"": 1}
        raise InputError(f"{sheet.like}: no column says the class, and there are {len(classes)} classes; "
                         "expected id,class,rle")
    labels = [header[column].strip() for column in form.wide]
    if not labels:
        labels = [_asked(row, form, predicted)[1] for row in rows]
    named = [label for label in labels if label]
    ids = token_ids(named, names, classes, sheet.like)
    for label in named:
        if label not in ids:
            raise did_you_mean(f"class in {sheet.like}", label, classes.names)
    return ids


# %%
print(
    _label_ids([["007_2", ""]], ["ImageId_ClassId", "rle"], Form(0, code=1, joined=True), predicted, Sheet())
)


# %%
#| export
def _filled(predicted: Predicted, sheet: Sheet) -> Iterator[list[str]]:
    "The header and the rows of the sample, with codes; `InputError` for a row of which nothing is predicted."
    header, rows = read_text_table(sheet.like)
    form = find_form(header, sheet.like)
    ids = _label_ids(rows.values(), header, form, predicted, sheet)
    yield header
    for line, row in rows.items():
        image, label = _asked(row, form, predicted)
        if image is None:
            asked = row[form.image][:60]
            raise InputError(f"{sheet.like}, line {line}: nothing is predicted for {asked!r}; "
                             "predict all images that the sample names")
        mask = predicted[image]
        if form.wide:
            for column in form.wide:
                id = ids[header[column].strip()]
                row[column] = encode(mask == id, sheet.coding)
        else:
            row[form.code] = encode(mask == ids[label], sheet.coding)
        yield row


# %%
(work/"sample.csv").write_text("Id,organ,Predicted,rle\n008.jpg,2,1,0 1\n007.jpg,1,1,0 1\n")
print(list(_filled(predicted, Sheet(like=work/"sample.csv"))))


# %%
#| export
def export_rle(
    masks, # a submission: a CSV of label maps, as `ctseg predict` writes it
    out, # the table to write, a `.csv`
    folder=None, # the challenge folder it is for; `None`: square images, classes by number
    sheet: Sheet = Sheet(),
) -> dict: # facts
    "Write label maps as run-length codes, a code for each image and class; an empty one where there is none."
    if not str(out).endswith(".csv"):
        raise InputError(f"{out}: a table of codes is called something.csv")
    check_file_place(out)
    predicted = read_predicted(masks, folder)
    lines = _filled(predicted, sheet) if sheet.like else _rows(predicted, sheet)
    with atomic_path(out) as tmp, open(tmp, "w", newline="", encoding="utf-8") as f:
        table = csv.writer(f, lineterminator="\n")
        rows = -1  # the header is none
        for line in lines:
            table.writerow(line)
            rows += 1
    return {
        "images": len(predicted),
        "classes": len(predicted.classes),
        "rows": rows,
        "form": f"like {Path(sheet.like).name}" if sheet.like else sheet.form,
        "codes": str(sheet.coding),
    }


# %%
print(export_rle(work/"masks.csv", work/"rle.csv", work))
print((work/"rle.csv").read_text())
form, codes = read_codes(work/"rle.csv", {"007", "008"})
test_eq(decode(codes["007"]["liver"].text, (2, 3)), maps[0, 1:3, :3] == 1)  # as large as the image was
