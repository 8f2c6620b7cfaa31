# %% [markdown]
# # Tables of codes
#
# > Kaggle's CSV of run-length codes in its four forms: which image, which class, which pixels.

# %%
#| default_exp io.rle_table

# %%
#| export
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ctseg.core.errors import InputError, some_of
from ctseg.io.value_names import column_of, letters_and_digits, read_text_table

# %%
#| hide
import tempfile

from fastcore.test import test_fail

# %% [markdown]
# | form | header | a row |
# |---|---|---|
# | long | `id,class,segmentation` | an image and a class |
# | joined | `ImageId_ClassId,EncodedPixels` | the same, in one cell: `007_liver` |
# | wide | `id,liver,spleen` | an image, a code for each class |
# | single | `id,rle` | an image; there is one class |
#
# An empty cell says that the class was looked for and not found. A row that is missing says nothing.

# %%
#| export
_IMAGE = ("imageid", "image", "id", "imgid", "img", "filename", "file", "imagename",
          "slice", "sliceid", "case")
_LABEL = ("class", "classid", "classname", "label", "labelid", "category", "categoryid", "organ", "structure")
_CODE = ("rle", "encodedpixels", "segmentation", "encodedmask", "mask", "code", "runlength",
         "rlemask", "encoding")
_JOINED = re.compile(r"(image|img|id|file|slice)\w*(class|label|category)(id)?")
_NO_CLASS = ("height", "width", "fold", "split", "usage", "patient", "patientid", "case", "day", "slice")
SINGLE = "object" # the class of a table that names none


# %%
#| export
@dataclass(frozen=True)
class Form:
    "Where a table of codes has what: numbers of columns."
    image: int
    label: int|None = None # `None`: in the image's cell, or in the header, or there is one class
    code: int|None = None # `None`: a column a class
    joined: bool = False # image and class stand in one cell
    wide: tuple[int, ...] = () # the columns that are classes

    @property
    def name(self) -> str:
        "What the form is called."
        if self.wide: return "wide"
        if self.joined: return "joined"
        return "single" if self.label is None else "long"


# %%
#| export
def find_form(header: list[str], path) -> Form:
    "The form of a table by the names of its columns; `InputError` if it cannot be told."
    image, code = column_of(header, _IMAGE), column_of(header, _CODE)
    joined = next((i for i, name in enumerate(header) if _JOINED.fullmatch(letters_and_digits(name))), None)
    if joined is not None and code is not None:
        return Form(joined, code=code, joined=True)
    if image is None:
        raise InputError(f"{path}: no column for the image ({some_of(header)}); "
                         "expected id,class,rle or id,liver,spleen,… or ImageId_ClassId,EncodedPixels")
    if code is not None:
        return Form(image, column_of(header, _LABEL), code)
    wide = [i for i, name in enumerate(header) if i != image and letters_and_digits(name) not in _NO_CLASS]
    if not wide or column_of(header, _LABEL) is not None:
        raise InputError(f"{path}: no column for the codes ({some_of(header)}); call it rle")
    return Form(image, wide=tuple(wide))


# %%
for text in (
    "id,class,segmentation",
    "ImageId_ClassId,EncodedPixels",
    "Image_Label,EncodedPixels",
    "id,liver,spleen,height",
    "ImageId,EncodedPixels",
):
    print(f"{text:32}{find_form(text.split(','), 'y.csv').name}")
test_fail(lambda: find_form(["a", "b"], "y.csv"), contains="no column for the image (a, b)")
test_fail(lambda: find_form(["id", "class", "x"], "y.csv"), contains="no column for the codes")

# %% [markdown]
# ## Which image, which class
#
# Tables name images with and without an ending, and the ending may be of another time: `007.jpg` for what is `007.png` here. Of a joined
# cell the longest beginning that is an image counts, since the names of classes hold underscores too.

# %%
#| export
_ENDING = re.compile(r"\.(png|jpe?g|tiff?|dcm|bmp|npy)$", re.IGNORECASE)

def image_of(text: str, stems: Collection[str]) -> str|None:
    "The image, by its name without ending, that a cell names; `None` if there is none."
    text = text.strip()
    if text in stems: return text
    stem = _ENDING.sub("", text.replace("\\", "/").rpartition("/")[2])
    return stem if stem in stems else None

def split_joined(text: str, stems: Collection[str]) -> tuple[str, str]|None:
    "Image and class of a cell such as 007_liver or 007.jpg_2; `None` if no image has such a name."
    text = text.strip()
    for i in range(len(text) - 1, 0, -1):
        if text[i] != "_": continue
        image = image_of(text[:i], stems)
        if image is not None: return image, text[i + 1:]
    return None


# %%
stems = {"007", "case_1"}
print(image_of("007.jpg", stems), split_joined("case_1_kidney_left", stems), split_joined("008_1", stems))


# %%
#| export
@dataclass(frozen=True)
class Code:
    "A run-length code and where it stands."
    text: str
    where: str # for messages

def _cells(form: Form, header: list[str], row: list[str], stems: Collection[str]) -> list[tuple]:
    "Image, class and code of each code in a row; the image is `None` where there is no such."
    if form.wide:
        image = image_of(row[form.image], stems)
        return [(image, header[i].strip(), row[i]) for i in form.wide]
    if form.joined:
        image, label = split_joined(row[form.image], stems) or (None, "")
        return [(image, label, row[form.code])]
    label = SINGLE if form.label is None else row[form.label].strip()
    return [(image_of(row[form.image], stems), label, row[form.code])]


# %%
print(_cells(Form(0, wide=(1, 2)), ["id", "liver", "spleen"], ["007", "3 3", ""], stems))
print(_cells(Form(0, code=1, joined=True), ["ImageId_ClassId", "rle"], ["007.jpg_2", "3 3"], stems))


# %%
#| export
def refuse_strangers(strangers: list[tuple[str, str]]): # where it stands, the name of an image
    "`InputError` if rows belong to no image."
    if strangers:
        where, name = strangers[0]
        count = f" ({len(strangers)} of the codes)" if len(strangers) > 1 else ""
        raise InputError(f"{where}: there is no image {name[:60]!r}{count}; add the images, "
                         "or take these rows out")


# %%
test_fail(
    lambda: refuse_strangers([("y.csv, line 2", "009")]), contains="there is no image '009'; add the images"
)


# %%
#| export
def read_codes(
    path, # `.csv` or `.csv.gz`
    stems: Collection[str], # the images there are, without endings
) -> tuple[Form, dict[str, dict[str, Code]]]: # image → class → code
    """The codes of a table. Raises `InputError` for rows of images that are not there,
    for a class that is there twice on an image, and for a row without a class.
    """
    path = Path(path)
    header, rows = read_text_table(path)
    form = find_form(header, path)
    codes, strangers = {}, []
    for line, row in rows.items():
        for image, label, text in _cells(form, header, row, stems):
            where = f"{path}, line {line}"
            if image is None:
                strangers.append((where, row[form.image]))
                continue
            if not label:
                raise InputError(f"{where}: no class is named; expected its name or number")
            of_image = codes.setdefault(image, {})
            if label in of_image:
                raise InputError(f"{where}: {label} of image {image} is there twice; "
                                 "unite the two codes in one row")
            of_image[label] = Code(text, f"{where}, {label} of image {image}")
    refuse_strangers(strangers)
    return form, codes


# %%
work = Path(tempfile.mkdtemp())
(work/"y.csv").write_text("id,class,segmentation\n007,liver,3 3\n007.png,spleen,\n")
form, codes = read_codes(work/"y.csv", stems)
print(
    form.name, {image: {label: code.text for label, code in found.items()} for image, found in codes.items()}
)
for rows in ("007,liver,3 3\n007,liver,9 1\n", "008,liver,3 3\n009,liver,\n", "007,,3 3\n"):
    (work/"y.csv").write_text("id,class,segmentation\n" + rows)
    try: read_codes(work/"y.csv", stems)
    except InputError as e: print("-", str(e).replace(str(work), "…"))
