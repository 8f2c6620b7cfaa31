"Which notebooks become pages, under which address, and in which order the sidebar shows them."
import re
from pathlib import Path

# Section of the sidebar -> folders (or single notebooks) of `nbs`. The library's folders stand in the order
# of the design: a folder imports only from those above it. "." is `nbs` itself, for the modules of no folder.
SECTIONS = {
    "Start": ("index.ipynb", "tutorials", "guides"),
    "Explanations": ("explanations",),
    "Kaggle": ("kaggle",),
    "Package": (".", "cli"),
    "Core": ("core",),
    "Data": ("data",),
    "Files in and out": ("io",),
    "Phantom": ("phantom",),
    "Losses": ("losses",),
    "Metrics": ("metrics",),
    "Models": ("models",),
    "Inference": ("inference",),
    "Training": ("training",),
    "Methods": ("methods",),
    "Runs": ("runs",),
    "Prediction": ("prediction",),
    "Recipes": ("recipes",),
    "Report": ("report",),
    "Integrations": ("integrations",),
    "Benchmarks": ("benchmarks",),
}
PROSE = ("Start", "Explanations", "Kaggle")  # the index of all names stands between these and the library

# Pages that stand before the others of their folder. The rest follows by file name, and so by number.
FIRST = (
    "tutorials/first_run.ipynb",
    "tutorials/your_own_dicom.ipynb",
    "guides/your_challenge_folder.ipynb",
    "guides/another_competition.ipynb",
    "guides/three_hospitals.ipynb",
    "guides/choosing_a_recipe.ipynb",
    "guides/reading_the_report.ipynb",
    "guides/comparing_two_methods.ipynb",
    "guides/starting_from_weights.ipynb",
    "guides/monai.ipynb",
    "guides/nnunet.ipynb",
    "explanations/one_sitting.ipynb",
    "explanations/three_states.ipynb",
    "explanations/unions.ipynb",
    "explanations/semi_supervised.ipynb",
    "explanations/dice_alone.ipynb",
    "kaggle/start_here/start_here.ipynb",
    "kaggle/supervised/supervised.ipynb",
    "kaggle/teacher_student/teacher_student.ipynb",
    "benchmarks/row_names.ipynb",
)


def pages(nbs: Path) -> list[str]:
    "Every notebook that becomes a page, relative to `nbs`; hidden and underscored names are left out."
    found = [p.relative_to(nbs) for p in nbs.rglob("*.ipynb")]
    return sorted(p.as_posix() for p in found if not any(part.startswith((".", "_")) for part in p.parts))


def unnumbered(name: str) -> str:
    "The address of a page: `core/01_files.ipynb` -> `core/files.ipynb`."
    return re.sub(r"(^|/)\d+[a-z]?_(?=[^/]*$)", r"\1", name)


def section_of(name: str) -> str:
    "The sidebar's section of a notebook, from its folder. A page that fits nowhere is an error."
    folder = name.split("/")[0] if "/" in name else "."
    for place in (name, folder):
        for section, places in SECTIONS.items():
            if place in places:
                return section
    remedy = "add its folder to SECTIONS in tools/website/layout.py"
    raise SystemExit(f"tools/docs.py: {name} fits no section of the sidebar; {remedy}")


def place(name: str) -> tuple:
    "What the pages of a section are sorted by: the order of its folders, then `FIRST`, then the name."
    places = SECTIONS[section_of(name)]
    folder = name.split("/")[0] if "/" in name else "."
    order = places.index(name) if name in places else places.index(folder)
    return order, FIRST.index(name) if name in FIRST else len(FIRST), name


def grouped(names: list[str]) -> dict[str, list[str]]:
    "Section -> its notebooks, in the order of the sidebar; sections without a page are left out."
    out = {section: [] for section in SECTIONS}
    for name in names:
        out[section_of(name)].append(name)
    return {section: sorted(found, key=place) for section, found in out.items() if found}


def sidebar(names: list[str], index: str) -> list[dict]:
    "The sidebar for Quarto's settings: prose, the index of all names, the library, the benchmarks."
    groups = grouped(names)
    entries = {s: {"section": s, "contents": [unnumbered(n) for n in found]} for s, found in groups.items()}
    prose = [entry for section, entry in entries.items() if section in PROSE]
    library = [entry for section, entry in entries.items() if section not in PROSE]
    return [*prose, {"text": "API index", "href": index}, *library]
