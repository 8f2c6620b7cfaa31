# %% [markdown]
# # Checksums of a run
#
# > What a run has written is told apart from what an accident or an editor made of it.

# %%
#| default_exp runs.sums

# %%
#| export
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ctseg.core.errors import InputError
from ctseg.core.json_files import json_checksum, read_json, write_json
from ctseg.core.schema import fit_schema, mapped, text
from ctseg.models.sealed import CHUNK, check_seal, read_seal

# %%
#| hide
import tempfile

from fastcore.test import test_eq

# %% [markdown]
# A rule with the threshold 0.45 in place of 0.54 is a rule that can be, and no check of ranges finds the mistake. So a finished run keeps the checksum of each file that decides a result or is shown in a report, in `checksums.json`.
# A file that is read and has another checksum is told in one line.
#
# Who changes a file on purpose can: deleting `checksums.json` accepts everything as it is. The message says so. Runs of ctseg before 0.2 have no `checksums.json` and are read as they are. It protects against accidents, not against forgery.
#
# A checksum is of what a file says. Of JSON it is the content, not the spacing, and of tables the ends of lines do not count, because editors and Git change both. Weights [carry theirs](../models/05_sealed.ipynb); what is kept here
# tells that they belong to this run. `timings.csv` decides nothing and differs from run to run, so it has none.

# %%
#| export
SUMS, METRICS_FILE, WEIGHTS_FILE = "checksums.json", "metrics.json", "checkpoints/model.safetensors"
SUMMED = ("recipe.json", "history.csv", "reliability.csv", "pseudo_labels.csv", "pseudo_labels.npz",
          "pseudo_cells.csv", WEIGHTS_FILE, METRICS_FILE)

def file_sum(path: Path) -> str | None:
    "The checksum of a file of a run, eight hexadecimal digits; None for weights that carry none."
    if path.suffix == ".safetensors": return read_seal(path)
    if path.suffix == ".json": return json_checksum(read_json(path))
    ends = b"\r" if path.suffix == ".csv" else b""
    checksum = 0
    with open(path, "rb") as f:
        while chunk := f.read(CHUNK):
            checksum = zlib.crc32(chunk.replace(ends, b"") if ends else chunk, checksum)
    return f"{checksum:08x}"


# %%
with tempfile.TemporaryDirectory() as d:
    table = Path(d)/"history.csv"
    table.write_bytes(b"epoch,loss\n1,0.5\n")
    before = file_sum(table)
    table.write_bytes(b"epoch,loss\r\n1,0.5\r\n")
    test_eq(file_sum(table), before)
    table.write_bytes(b"epoch,loss\n1,0.6\n")
    print(before, file_sum(table))


# %%
#| export
def read_sums(run: Path) -> dict[str, str]:
    "What `checksums.json` of a run folder says, by the name of a file; {} without it."
    path = run/SUMS
    if not os.path.lexists(path): return {}
    remedy = "copy it again, or delete it to accept the run as it is"
    return fit_schema(read_json(path), mapped(text), path, f"not the checksums of a run; {remedy}")

def sums_of(run: Path, names: Iterable[str] = SUMMED) -> dict[str, str]:
    "The checksums of those of the files that are there."
    sums = {name: file_sum(run/name) for name in names if os.path.lexists(run/name)}
    return {name: found for name, found in sums.items() if found}


# %% [markdown]
# `check_sum` is called where a file of a run is read.

# %%
#| export
def check_sum(
    path: Path, # a file in the run folder
    run: Path | None = None, # the folder; None: the one that the file is in
) -> None:
    "`InputError` for a file of a run that is not as the run wrote it."
    run = path.parent if run is None else run
    name = path.relative_to(run).as_posix()
    expected = read_sums(run).get(name)
    if expected is None or file_sum(path) == expected: return
    remedy = f"copy it again, or delete {run/SUMS} if you changed it on purpose"
    raise InputError(f"{path}: not what the run wrote, its checksum differs; {remedy}")


# %%
with tempfile.TemporaryDirectory() as d:
    run = Path(d)
    write_json({"classes": {"1": "liver"}}, run/"recipe.json")
    write_json(sums_of(run), run/SUMS)
    check_sum(run/"recipe.json")
    write_json({"classes": {"1": "spleen"}}, run/"recipe.json")
    try: check_sum(run/"recipe.json")
    except InputError as e: print(str(e).replace(d, "run"))
    (run/SUMS).unlink()
    check_sum(run/"recipe.json")


# %% [markdown]
# Who continues a finished run has nothing to do, and is told that it is finished. That holds only while its files are whole.

# %%
#| export
def check_sums(run: Path) -> None:
    "`InputError` for the first file of a finished run that is not as the run wrote it. Files that are missing are not told here."
    for name in SUMMED:
        if os.path.lexists(run/name): check_sum(run/name, run)
    weights = run/WEIGHTS_FILE  # of which only the checksum that they carry has been compared
    if os.path.lexists(weights): check_seal(weights)


# %% [markdown]
# `metrics.json` is the sign that a run is finished, so it comes last. Where it is written anew, the checksums are away meanwhile: a run that is killed between the two is read without them, never refused.

# %%
#| export
def write_metrics(
    facts: dict[str, Any], # what `metrics.json` is to say
    run: Path,
    renewed: Iterable[str] = SUMMED, # whose checksums are taken anew; the others stay as they are
) -> None:
    "Write `metrics.json` and the checksums of a run."
    finished = os.path.lexists(run/METRICS_FILE)
    sums = read_sums(run) | sums_of(run, [name for name in renewed if name != METRICS_FILE])
    sums[METRICS_FILE] = json_checksum(facts)
    if finished: (run/SUMS).unlink(missing_ok=True)
    else: write_json(sums, run/SUMS)
    write_json(facts, run/METRICS_FILE)
    if finished: write_json(sums, run/SUMS)


# %%
with tempfile.TemporaryDirectory() as d:
    run = Path(d)
    write_json({"classes": {"1": "liver"}}, run/"recipe.json")
    write_metrics({"dice": 0.5}, run)
    print(read_sums(run))
    write_metrics({"dice": 0.6}, run, [])
    for name in read_sums(run): check_sum(run/name)


# %% [markdown]
# A run that lost `metrics.json`, in a copy that was cut short perhaps, would predict without its rule.

# %%
#| export
def check_finished(run: Path) -> None:
    "`InputError` for a run whose `metrics.json` is missing, though its checksum is there."
    if os.path.lexists(run/METRICS_FILE): return
    if METRICS_FILE not in read_sums(run): return
    remedy = "copy it again, or write it with `ctseg fit … --resume`"
    raise InputError(f"{run/METRICS_FILE}: missing, though the run has been finished; {remedy}")


# %%
with tempfile.TemporaryDirectory() as d:
    write_metrics({"dice": 0.5}, Path(d))
    check_finished(Path(d))
    (Path(d)/METRICS_FILE).unlink()
    try: check_finished(Path(d))
    except InputError as e: print(str(e).replace(d, "run"))
