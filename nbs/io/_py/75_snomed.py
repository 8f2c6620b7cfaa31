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

# %%
#| hide
from fastcore.test import test_eq
from pydicom.sr._concepts_dict import concepts

from ctseg.core.anatomy import RAIDIUM54


# %% [markdown]
# A label map is of little use to a radiologist. A DICOM Segmentation opens in any viewer and says what it shows by [SNOMED
# CT](https://www.snomed.org/) codes. The table `ctseg/io/snomed.csv` has the structures of the challenge and of the real-CT benchmark.
# Its codes follow [TotalSegmentator's
# table](https://github.com/wasserth/TotalSegmentator/blob/master/totalsegmentator/resources/totalsegmentator_snomed_mapping.csv)
# and, for head and neck, the code sets of DICOM itself. The regions of the spine are *vertebra* with the region beside it.

# %%
#| export
class Concept(NamedTuple):
    "A concept of SNOMED CT."
    code: str
    meaning: str

@functools.cache
def _table() -> dict[str, dict[str, str]]:
    "The rows of snomed.csv by structure."
    text = resources.files("ctseg.io").joinpath("snomed.csv").read_text(encoding="utf-8")
    return {row["structure"]: row for row in csv.DictReader(text.splitlines())}


# %%
print(len(_table()), "structures, for instance", _table()["vertebrae_lumbar"])

# %% [markdown]
# The side is not part of the code. It is a *modifier*, left or right.

# %%
#| export
_SIDES = {"left": Concept("7771000", "Left"), "right": Concept("24028007", "Right")}

class StructureCodes(NamedTuple):
    "How SNOMED CT describes a class; `None` where there is nothing to say."
    structure: Concept|None
    side: Concept|None
    region: Concept|None


# %%
#| export
def snomed(
    name: str, # a class name, such as kidney_left
) -> StructureCodes:
    "The SNOMED CT codes of a class, by its name."
    side = re.search(r"(?:^|_)(left|right)(?:_|$)", name)
    structure = name
    if side: structure = f"{name[:side.start()]}_{name[side.end():]}".strip("_")
    row = _table().get(structure)
    modifier = _SIDES[side[1]] if side else None
    if row is None: return StructureCodes(None, modifier, None)
    region = Concept(row["region_code"], row["region_meaning"]) if row["region_code"] else None
    return StructureCodes(Concept(row["code"], row["meaning"]), modifier, region)


# %%
for name in ("kidney_left", "vertebrae_lumbar", "liver", "eye_left"):
    codes = snomed(name)
    print(f"{name:17}", *[concept and tuple(concept) for concept in codes])
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

shared = {name: row for name, row in _table().items() if row["code"] in meanings}
print(
    f"{len(shared)} of the codes are in pydicom's dictionary, "
    f"{sum(map(same_words, shared.values()))} with the "
    f"same words"
)
print(
    "other words:",
    {n: (r["meaning"], meanings[r["code"]][0]) for n, r in shared.items() if not same_words(r)},
)
print("not in it:", *[name for name in _table() if name not in shared])
