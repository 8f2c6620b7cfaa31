# %% [markdown]
# # Cases
#
# > Volumes before they are loaded: their names, their patients, and who goes into the test.

# %%
#| default_exp io.cases

# %%
#| export
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.json_files import read_json
from ctseg.io.volumes import Volume

# %%
#| hide
import tempfile

from fastcore.test import test_eq, test_fail

from ctseg.core.json_files import write_json


# %% [markdown]
# An import may take hours. So whatever can go wrong is checked before the first volume is loaded, on a list of `Case`s. What must
# **not** get into a challenge folder is a patient: file and folder names are names of people more often than one would think. So
# volumes are called `v000`, `v001`, … in the order of the source, unless the source has public names.

# %%
#| export
@dataclass
class Case:
    "A volume that can be loaded, and what is said of it beforehand."
    source: str # where it is; goes into the private key only
    load: Callable[[], Volume]
    patient: object = None # an int becomes the group number, anything else is only compared
    known: np.ndarray|None = None # bool [C]: classes examined; `None`: not known before it is loaded
    split: str = "train" # train or test
    id: str = "" # a public name without a patient in it; "": `v000`, …
    display_name: str = "" # what an error message calls it; "": its id
    stamp: str = "" # changes when the files do that it is loaded from; "": not known

    @property
    def called(self) -> str:
        "What an error message calls it."
        return self.display_name or self.id


# %%
full, part, nothing = np.array([True, True]), np.array([True, False]), np.array([False, False])
case = Case("Jane Doe/scan.nii.gz", lambda: None, known=part, display_name="scan.nii.gz")
print(case.called, "known:", case.known)


# %% [markdown]
# Every case needs a public name of its own, and every patient a number.

# %%
#| export
def _check_unique(cases: list[Case]):
    "`InputError` if two cases have one name."
    first = {}
    for case in cases:
        other = first.setdefault(case.id, case)
        if other is case: continue
        names = [c.display_name or c.source for c in (case, other)]
        raise InputError(f"{names[0]}: would be called {case.id}, as {names[1]} is; "
                         "rename one, or let ctseg number the volumes")


# %%
test_fail(
    lambda: _check_unique([case, case.__class__("other", lambda: None, id=case.id)]),
    contains="would be called",
)


# %%
#| export
def name_cases(cases: list[Case]):
    """Give each case its public name and its patient a number, in place.

    A case without a patient is a patient of its own. Raises `InputError` if two cases have one name.
    """
    digits = max(3, len(str(len(cases) - 1)))
    for i, case in enumerate(cases):
        case.id = case.id or f"v{i:0{digits}}"
        if case.patient is None: case.patient = case.source
    _check_unique(cases)
    if all(type(case.patient) is int for case in cases): return
    number = {}
    for case in cases:
        case.patient = number.setdefault(str(case.patient), len(number))


# %%
def cases_of(*patients, **kw):
    return [Case(f"file {i}", lambda: None, p, **kw) for i, p in enumerate(patients)]

cases = cases_of("Jane", "John", "Jane", None)
name_cases(cases)
print([(c.id, c.patient) for c in cases])
test_fail(lambda: name_cases(cases_of(1, 2, id="p1")), contains="would be called p1")


# %% [markdown]
# ## Scans of one patient
#
# Scans of one patient must not be torn apart by a fold or by a test, and only the user knows which they are. A `patients.json` beside
# the volumes, `{"p1_2019": "p1", "p1_2021": "p1", "p2": "p2"}`, names the patient of each case.

# %%
#| export
def _check_patients(table, path: Path, names: list[str]):
    "`InputError` unless the table names a patient for each of the cases and for no other."
    if not isinstance(table, dict) or not all(type(patient) in (str, int) for patient in table.values()):
        example = f'{{"{min(names)}": "p1", …}}'
        raise InputError(f"{path}: expected an object from cases to patients, such as {example}")
    missing = sorted(set(names) - set(table))
    if missing:
        raise InputError(f"{path}: does not say whose scan {missing[0]} is; "
                         f"add it ({len(missing)} are missing)")
    unknown = sorted(set(table) - set(names))
    if unknown: raise did_you_mean(f"case in {path}", unknown[0], set(names))


# %%
_check_patients({"scan1": "p1", "scan2": 1}, Path("patients.json"), ["scan1", "scan2"])
test_fail(
    lambda: _check_patients({"scan1": "p1"}, Path("patients.json"), ["scan1", "scan2"]),
    contains="whose scan scan2 is",
)
test_fail(
    lambda: _check_patients({"scan1": None}, Path("patients.json"), ["scan1"]), contains="expected an object"
)


# %%
#| export
def read_patients(
    path: Path, # a `patients.json`; nothing happens if it is not there
    cases: list[Case],
    names: list[str], # what the file calls each case
):
    """Give the cases the patients that a file names, in place.

    Raises `InputError` for a file that does not fit.
    """
    if not path.exists(): return
    table = read_json(path)
    _check_patients(table, path, names)
    for case, name in zip(cases, names):
        case.patient = f"patient {table[name]}"  # text, so that a number is compared only, and not written


# %%
folder = Path(tempfile.mkdtemp())
names = ["p1_2019", "p1_2021", "p2"]
write_json({"p1_2019": "p1", "p1_2021": "p1", "p2": "p2"}, folder/"patients.json")
cases = cases_of(None, None, None)
read_patients(folder/"patients.json", cases, names)
name_cases(cases)
test_eq([c.patient for c in cases], [0, 0, 1])
test_fail(lambda: read_patients(folder/"patients.json", cases, names + ["p3"]), contains="whose scan p3 is")


# %% [markdown]
# ## Who goes into the test
#
# In the challenge's form a test is annotated fully or not at all. So only patients of whom every class is known can go there; the
# partly labelled ones are for training.

# %%
#| export
def _testable(cases: list[Case]) -> list:
    "The patients that can be a test: all those fully known; or everybody, if nothing is known of anybody."
    patients = list(dict.fromkeys(case.patient for case in cases))
    if all(case.known is not None and not case.known.any() for case in cases):
        return patients
    incomplete = {case.patient for case in cases if case.known is None or not case.known.all()}
    return [patient for patient in patients if patient not in incomplete]


# %%
print(
    "of three patients:",
    _testable([Case(f"{i}", lambda: None, i, k) for i, k in enumerate((full, full, part))]),
)
print("of two without labels:", _testable([Case(f"{i}", lambda: None, i, nothing) for i in range(2)]))


# %%
#| export
def set_aside_test(
    cases: list[Case],
    share: float, # of the patients, 0…1
    seed: int,
):
    """Move a share of the patients into the test, whole patients, in place.

    Raises `InputError` if too few are fully known.
    """
    if not 0 <= share <= 1:
        raise InputError(f"test_share {share}: expected 0 to 1")
    if not share: return
    total = len({case.patient for case in cases})
    wanted = max(1, round(share*total))
    testable = _testable(cases)
    if wanted > len(testable):
        raise InputError(f"test_share {share} means {wanted} patients, "
                         f"but only {len(testable)} of {total} have every class examined, "
                         "which a test needs; choose a smaller share or fewer classes")
    if wanted == total and share < 1:
        raise InputError(f"test_share {share} of {total} patients leaves none to learn from; "
                         "choose a smaller share, or 1 for a test alone")
    order = np.random.default_rng(seed).permutation(len(testable))
    chosen = {testable[i] for i in order[:wanted]}
    for case in cases:
        if case.patient in chosen: case.split = "test"


# %%
cases = [c for known in (full, full, part) for c in cases_of("x", known=known)]
for i, case in enumerate(cases): case.patient = i
set_aside_test(cases, .3, seed=0)
print([(c.split, c.known.tolist()) for c in cases])
test_fail(lambda: set_aside_test(cases, .9, seed=0), contains="only 2 of 3")


# %% [markdown]
# A source may have a test of its own. The same rule holds for it, and is checked before anything is loaded wherever that is possible.

# %%
#| export
def check_test(cases: list[Case]):
    """Raise `InputError` for a test of which some volumes are annotated, but not all of them fully.

    Volumes of which it is not known yet are passed over.
    """
    tests = [case for case in cases if case.split == "test" and case.known is not None]
    incomplete = [case for case in tests if not case.known.all()]
    if not incomplete or not any(case.known.any() for case in tests): return
    first = incomplete[0]
    examined = "not every" if first.known.any() else "no"
    raise InputError(f"{first.called}: a test volume on which {examined} class was examined; "
                     "a test is annotated fully or not at all, "
                     "move this one to the training volumes or take it out")


# %%
check_test(cases_of(1, 2, known=nothing, split="test"))
check_test(cases_of(1, 2, known=part, split="train"))
test_fail(
    lambda: check_test(cases_of(1, 2, known=part, split="test")), contains="not every class was examined"
)
