"""A notebook `nbs/X.ipynb` and its text `nbs/_py/X.py`: the same cells twice, and which of the two was
edited.

Contents decide, never the clock: git gives files new times at every merge and checkout. A file was
edited where it
differs from what it is known to have been, and two such states are known: what git's HEAD holds, and
what
`tools/nb.py` left behind last (kept by its hash in git's own folder). Outputs are no edit: texts are
compared.
Times are asked only where neither state is known, outside git or before the first commit.
"""
import hashlib
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jupytext
from execnb.nbio import read_nb, write_nb
from jupytext.cli import jupytext as convert

NBS = Path(__file__).resolve().parent.parent/"nbs"
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
TEXT, NOTEBOOK = "text", "notebook"
CONFLICT = ("<<<<<<< ", ">>>>>>> ")


class Undecided(Exception):
    "Nothing tells which of the two was edited; the message says what to do."


def mirror_path(nb: Path) -> Path:
    "Where the text of a notebook lies."
    return nb.parent/"_py"/f"{nb.stem}.py"


def notebooks(root: Path = NBS) -> list[Path]:
    "Every notebook, also those that so far exist only as text."
    text = {p.parent.parent/f"{p.stem}.ipynb" for p in root.rglob("_py/*.py")}
    both = text | set(root.rglob("*.ipynb"))
    return sorted(p for p in both if not any(q.startswith((".", "_")) for q in p.relative_to(root).parts))


def as_text(note) -> str:
    "A notebook as percent text: no header, no metadata but tags."
    note.metadata = {"jupytext": {"notebook_metadata_filter": "-all", "cell_metadata_filter": "tags,-all"}}
    return jupytext.writes(note, fmt="py:percent")


def mirror_text(nb: Path) -> str:
    "What the text of this notebook must be."
    return as_text(jupytext.read(nb))


def in_conflict(path: Path) -> bool:
    "Whether a merge left its marks in a file."
    lines = path.read_text(encoding="utf-8").splitlines()
    return all(any(line.startswith(mark) for line in lines) for mark in CONFLICT)


def git(folder: Path, *command: str) -> str | None:
    "What git answers, or None where it has no answer (or there is no git)."
    try:
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout.decode("utf-8") if done.returncode == 0 else None


def digest(text: str) -> str:
    "A text in 64 characters."
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def only_changed(text: bool, notebook: bool) -> str | None:
    "Which one changed, if just one did."
    if text == notebook:
        return None
    return TEXT if text else NOTEBOOK


@dataclass
class Pair:
    "A notebook and its text on disk."
    nb: Path

    @property
    def py(self) -> Path:
        "The text."
        return mirror_path(self.nb)

    @cached_property
    def note_path(self) -> Path | None:
        "Where the hash of the last round is kept: in git's folder, so it never travels."
        folder = git(self.nb.parent, "rev-parse", "--absolute-git-dir")
        top = git(self.nb.parent, "rev-parse", "--show-toplevel")
        if folder is None or top is None:
            return None
        inside = self.nb.resolve().relative_to(Path(top.strip()).resolve())
        return Path(folder.strip())/"nb-sync"/inside.with_suffix("")

    def head(self, path: Path) -> str | None:
        "What git's HEAD holds at a path."
        return git(path.parent, "show", f"HEAD:./{path.name}")

    def last_round(self) -> str | None:
        "The hash of the text that both had when `tools/nb.py` was done with them."
        known = self.note_path is not None and self.note_path.exists()
        return self.note_path.read_text(encoding="utf-8") if known else None

    def remember(self):
        "Both agree now: keep the hash of their text."
        if self.note_path is None:
            return
        self.note_path.parent.mkdir(parents=True, exist_ok=True)
        self.note_path.write_text(digest(self.py.read_text(encoding="utf-8")), encoding="utf-8")

    def edited(self) -> str | None:
        "`text`, `notebook`, or None where they agree; `Undecided` where nothing tells."
        if not self.py.exists():
            return NOTEBOOK
        if not self.nb.exists():
            return TEXT
        self.refuse_conflicts(self.nb, self.py)
        text = self.py.read_text(encoding="utf-8")
        own = mirror_text(self.nb)
        if text == own:
            return None
        known = self.by_states(text, own) or self.by_times()
        changed = {winner for winner in known.values() if winner is not None}
        if len(changed) == 1:
            return changed.pop()
        states = " and ".join(known)
        if changed:
            raise Undecided(
                f"the notebook and its text differ, and {states} do not tell alike which was edited"
            )
        raise Undecided("the notebook and its text differ, and " + (
            f"against {states} both changed or neither did" if known else "nothing is known of either"))

    def choose(self, chosen: str | None) -> str | None:
        "The one to follow: `chosen`, if it can be read, or else the edited one."
        if chosen is None:
            return self.edited()
        path = self.py if chosen == TEXT else self.nb
        if not path.exists():
            raise Undecided(f"there is no {path.name}")
        self.refuse_conflicts(path)
        return chosen

    def refuse_conflicts(self, *paths: Path):
        "Half of a merge is no content."
        for path in paths:
            if in_conflict(path):
                raise Undecided(f"{path.name} holds the marks of a merge")

    def by_states(self, text: str, own: str) -> dict[str, str | None]:
        """The edited one by each state that is known: None where both differ from it, or neither.

        text: the content of the text file. own: the notebook's, as text.
        """
        found = {}
        head_text = self.head(self.py)
        head_note = self.head(self.nb)
        if head_text is not None and head_note is not None:
            head_own = as_text(jupytext.reads(head_note, fmt="ipynb"))
            found["HEAD"] = only_changed(text != head_text, own != head_own)
        last = self.last_round()
        if last is not None:
            found["the last round"] = only_changed(digest(text) != last, digest(own) != last)
        return found

    def by_times(self) -> dict[str, str | None]:
        "The newer one, for those that git does not know."
        text_time = self.py.stat().st_mtime_ns
        note_time = self.nb.stat().st_mtime_ns
        return {"their times": only_changed(text_time > note_time, note_time > text_time)}

    def from_text(self):
        "Bring the notebook up to its text; outputs and cell ids are kept."
        if self.nb.exists() and in_conflict(self.nb):
            self.nb.write_text(self.head(self.nb), encoding="utf-8")
        if not self.nb.exists():
            new = jupytext.read(self.py)
            new.metadata = {"kernelspec": KERNEL}
            jupytext.write(new, self.nb)
            return
        convert(["--quiet", "--update", "--to", "ipynb", "--output", str(self.nb), str(self.py)])
        full = read_nb(self.nb)
        full.metadata = {"kernelspec": KERNEL}
        write_nb(full, self.nb)

    def mirror(self):
        "Write the text again from the notebook, and remember that they agree."
        self.py.parent.mkdir(exist_ok=True)
        text = mirror_text(self.nb)
        if not self.py.exists() or self.py.read_text(encoding="utf-8") != text:
            self.py.write_text(text, encoding="utf-8")
        self.remember()


def sync(paths: list[Path], chosen: str | None = None) -> list[str]:
    """Make each notebook and its text agree, on the one that was edited.

    chosen: `text` or `notebook`, to say which instead of finding out. Returns a line for each pair that
    nothing
    settles; then nothing has been written.
    """
    pairs = [Pair(nb) for nb in paths]
    winners, lines = [], []
    for pair in pairs:
        try:
            winners.append(pair.choose(chosen))
        except Undecided as problem:
            shown = pair.nb.relative_to(NBS.parent) if pair.nb.is_relative_to(NBS.parent) else pair.nb
            lines.append(f"{shown}: {problem}")
    if lines:
        return lines
    for pair, winner in zip(pairs, winners):
        if winner == TEXT:
            pair.from_text()
        pair.mirror()
    return []
