# %% [markdown]
# # SNOMED CT codes
#
# > What a segment shows, in a language that machines share.

# %%
#| default_exp io.snomed

# %%
#| export
import csv
import functools
import re
from importlib import resources
from typing import NamedTuple

from ctseg.core.anatomy import side_word

# %%
#| hide
from fastcore.test import test_eq
from pydicom.sr._concepts_dict import concepts

from ctseg.core.anatomy import RAIDIUM54


# %% [markdown]
# A label map is of little use to a radiologist. A DICOM Segmentation opens in any viewer and says what it shows by [SNOMED
# CT](https://www.snomed.org/) codes. The table `ctseg/io/snomed.csv` has the structures of the challenge, all class names of
# TotalSegmentator, and the usual organs at risk of radiotherapy. Its codes are those of DICOM's own code sets; where these lack a structure,
# of [TotalSegmentator's
# table](https://github.com/wasserth/TotalSegmentator/blob/master/totalsegmentator/resources/totalsegmentator_snomed_mapping.csv)
# or of the [TG-263 map](https://hl7.org/fhir/us/codex-radiation-therapy/) of HL7's CodeX. The regions of the spine are *vertebra* with the region beside it.

# %%
#| export
class Concept(NamedTuple):
    "A concept of SNOMED CT."
    code: str
    meaning: str

@functools.cache
def _table() -> dict[str, dict[str, str]]:
    "The rows of snomed.csv by structure, and by the other names of a structure."
    text = resources.files("ctseg.io").joinpath("snomed.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return {name: row for row in rows for name in [row["structure"], *row["other_names"].split()]}


# %%
structures = {row["structure"]: row for row in _table().values()}
print(len(structures), "structures under", len(_table()), "names, for instance", structures["parotid"])


# %% [markdown]
# ## Spellings
#
# The same kidney is called `kidney_left`, `kidney_l`, `Kidney_L` (TG-263), `Lt Kidney` or `LKidney`. Names are compared in small letters with
# single underscores, and words that are run together are taken apart.

# %%
#| export
def plain_name(name: str) -> str:
    "A class name in small letters, with underscores between its words: `OpticNrv_L` → `optic_nrv_l`."
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[\W_]+", "_", apart.lower()).strip("_")


# %%
for name in ("Kidney_L", "Lt Kidney", "LKidney", "OpticNrv_R", "vertebrae_T10", "V_Venacava_I"):
    print(f"{name:14}", plain_name(name))

# %% [markdown]
# The side is not part of the code. It is a *modifier*, left or right. A few concepts have their side in themselves, such as the left
# atrium, and get no modifier. A structure that is single has no side: `aorta_left` is no structure of the table, because nobody can know
# what was meant by it.

# %%
#| export
_LEFT, _RIGHT = Concept("7771000", "Left"), Concept("24028007", "Right")
_SIDES = {"left": _LEFT, "lt": _LEFT, "l": _LEFT, "right": _RIGHT, "rt": _RIGHT, "r": _RIGHT}
ANATOMY = Concept("123037004", "Anatomical Structure")
_CATEGORIES = {
    "": ANATOMY,
    "tissue": Concept("85756007", "Tissue"),
    "altered": Concept("49755003", "Morphologically Altered Structure"),
    "object": Concept("260787004", "Physical object"),
}

class StructureCodes(NamedTuple):
    "How SNOMED CT describes a class; `None` where there is nothing to say."
    structure: Concept|None
    side: Concept|None
    region: Concept|None
    category: Concept = ANATOMY

    @property
    def side_of_region(self) -> bool:
        "Is the side that of the region, and not of the structure? A cyst has no side, its kidney has."
        return self.side is not None and self.region is not None and self.category != ANATOMY


# %%
#| export
def _found(name: str) -> tuple[dict[str, str]|None, Concept|None]:
    "The row of a plain name, if it has one, and its side."
    if name in _table(): return _table()[name], None
    side = side_word(name)
    if not side: return None, None
    words = re.sub(rf"(?<=\d)(?={side})|(?<={side})(?=\d)", "_", name).split("_")  # rib_left1
    words.remove(side)
    row = _table().get("_".join(words))
    if row is not None and not row["paired"]: row = None
    return row, _SIDES[side]


# %%
for name in ("kidney_l", "heart_atrium_left", "aorta_left"):
    print(f"{name:18}", _found(name)[0] is not None, _found(name)[1])


# %%
#| export
def snomed(
    name: str, # a class name, such as kidney_left, kidney_l or Kidney_L
) -> StructureCodes:
    "The SNOMED CT codes of a class, by its name in any of the usual spellings."
    row, side = _found(plain_name(name))
    if row is None: return StructureCodes(None, side, None)
    region = Concept(row["region_code"], row["region_meaning"]) if row["region_code"] else None
    return StructureCodes(Concept(row["code"], row["meaning"]), side, region, _CATEGORIES[row["category"]])


# %%
for name in (
    "kidney_left",
    "Parotid_R",
    "vertebrae_lumbar",
    "rib_left_1",
    "OpticNrv_L",
    "kidney_cyst_right",
    "my_lesion",
):
    codes = snomed(name)
    print(f"{name:17}", *[concept and tuple(concept) for concept in codes[:3]])
assert all(snomed(name).structure for name in RAIDIUM54.names)
test_eq(sum(bool(snomed(name).side) for name in RAIDIUM54.names), 2*len(RAIDIUM54.pairs))

# %% [markdown]
# The codes that pydicom's own dictionary holds are compared with it, word by word as far as the wordings agree.

# %%
meanings = {}
for entry in concepts["SCT"].values():
    for code, (meaning, _) in entry.items(): meanings.setdefault(code, []).append(meaning.lower())

def same_words(row):
    return any(row["meaning"].lower() in m or m in row["meaning"].lower() for m in meanings[row["code"]])

shared = {name: row for name, row in structures.items() if row["code"] in meanings}
same = sum(map(same_words, shared.values()))
print(f"{len(shared)} of the codes are in pydicom's dictionary, {same} with the same words")
print(
    "other words:",
    {n: (r["meaning"], meanings[r["code"]][0]) for n, r in shared.items() if not same_words(r)},
)
print("not in it:", *[name for name in structures if name not in shared])
