# %% [markdown]
# # Files and errors
#
# > Files that are never half-written, and mistakes that are told in one line.
#
# - skip_showdoc: true

# %%
#| default_exp files

# %% [markdown]
# Two promises hold everywhere in `ctseg`, so they are made once, here. A user's mistake ends in **one clear line** and exit status 2, not
# in a traceback; and a file either has its old content or its whole new content, **never half of it**, even when the power goes
# or the disk is full.

# %%
#| export
import contextlib, difflib, errno, json, math, os, shutil, tempfile
from pathlib import Path

# %%
#| hide
from fastcore.test import test_eq, test_fail


# %% [markdown]
# ## One line for a mistake
#
# An `InputError` says what is wrong, where, what was expected, and how to mend it. The command line prints its text and stops with
# status 2; in a notebook it is an ordinary `ValueError`.

# %%
#| export
class InputError(ValueError):
    "A mistake in what the user gave: told in one line, without a traceback, exit status 2."


# %% [markdown]
# The commonest mistake is a misspelt name. The answer should be the right name.

# %%
#| export
def did_you_mean(
    kind: str, # what the name is a name of, e.g. "recipe"
    name: str, # the unknown name
    options, # the valid names
) -> InputError: # to be raised by the caller
    "An error for an unknown name that shows the nearest valid ones."
    options = sorted(map(str, options))
    near = difflib.get_close_matches(str(name), options, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(options)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")


# %%
print(did_you_mean("recipe", "seed-atunet", ["seed-attunet", "masked", "marginal"]))
print(did_you_mean("recipe", "?", ["seed-attunet", "masked", "marginal"]))

# %% [markdown]
# ## A file is whole or it is not there
#
# `atomic_path` hands out a temporary name *in the same folder* (a rename is atomic only within one file system). If the block ends well,
# the temporary file takes the final name; if it fails, nothing is left. Failures of the disk itself (full, read-only, no permission)
# are the user's to mend, so they become an `InputError` that names the file.

# %%
#| export
_DISK = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "the disk is read-only",
         errno.EACCES: "permission denied", errno.EPERM: "permission denied", errno.ENOTDIR: "a part of the path is a file, not a folder",
         errno.EEXIST: "a part of the path is a file, not a folder",
         errno.EISDIR: "it is a folder", errno.ENAMETOOLONG: "the name is too long"}

@contextlib.contextmanager
def disk_errors(path):
    "Tell a failure of the disk in one line that names `path`."
    try: yield
    except OSError as e:
        if e.errno not in _DISK: raise
        raise InputError(f"cannot write {path}: {_DISK[e.errno]}") from e


# %%
#| export
PART = ".part"  # how the names of unfinished files end

@contextlib.contextmanager
def atomic_path(
    path, # the final path, a file or a folder
): # yields a temporary `Path` beside it, with the same suffixes
    "Write to a temporary name; rename to `path` when the block ends well, remove when it fails."
    path = Path(path)
    new = [p for p in path.parents if not p.exists()]  # folders made for this file go again when it fails, the innermost first
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        hold = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent))
        tmp = hold/path.name
        try:
            yield tmp
            if tmp.is_dir() and path.is_dir(): os.replace(path, hold/".old")  # a folder cannot be renamed over a full one
            os.replace(tmp, path)
        finally:
            if not path.exists() and (hold/".old").exists():  # cut between the two renames: the old folder goes back
                with contextlib.suppress(OSError): os.rename(hold/".old", path)
            if path.exists() or not (hold/".old").exists(): shutil.rmtree(hold, ignore_errors=True)  # never the only copy
            if not path.exists():
                with contextlib.suppress(OSError):
                    for p in new: p.rmdir()

def refuse_folder(path):
    "`InputError` if a file shall be written where a folder is. `atomic_path` says so too, but after the work."
    if path and Path(path).is_dir(): raise InputError(f"cannot write {path}: it is a folder")


# %%
with tempfile.TemporaryDirectory() as d:
    target = Path(d)/"new"/"a.txt"
    with atomic_path(target) as tmp: tmp.write_text("one")
    test_eq(target.read_text(), "one")
    with contextlib.suppress(KeyboardInterrupt):
        with atomic_path(target) as tmp:
            tmp.write_text("tw")
            raise KeyboardInterrupt  # the session is cut in the middle of a write
    test_eq(target.read_text(), "one")
    test_eq(list(target.parent.iterdir()), [target])  # and no debris
    with contextlib.suppress(KeyboardInterrupt):
        with atomic_path(Path(d)/"never"/"made"/"b.txt") as tmp: raise KeyboardInterrupt
    test_eq([p.name for p in Path(d).iterdir()], ["new"])  # not even an empty folder


# %% [markdown]
# ## JSON
#
# Small helpers that keep both promises: damaged JSON is named with its line, and written JSON is whole.

# %%
#| export
def read_json(path):
    "Read a JSON file; an `InputError` names the file and the line where it is damaged."
    path = Path(path)
    try: return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError: raise InputError(f"{path}: no such file") from None
    except IsADirectoryError: raise InputError(f"{path}: is a folder, expected a JSON file") from None
    except OSError as e: raise InputError(f"{path}: cannot be read ({e.strerror})") from None
    except UnicodeDecodeError: raise InputError(f"{path}: not UTF-8 text, expected a JSON file") from None
    except json.JSONDecodeError as e: raise InputError(f"{path}, line {e.lineno}: not valid JSON ({e.msg})") from None

def write_json(obj, path, indent: int|None = 1):
    "Write `obj` as JSON, whole or not at all; a number that is none (NaN) or infinite becomes null, because JSON has no such numbers."
    with atomic_path(path) as tmp: tmp.write_text(json.dumps(_finite(obj), indent=indent, allow_nan=False) + "\n", encoding="utf-8")

def _finite(x):
    if isinstance(x, dict): return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


# %%
with tempfile.TemporaryDirectory() as d:
    p = Path(d)/"a.json"
    write_json({"loss": [float("nan"), float("inf"), .5]}, p)
    test_eq(read_json(p), {"loss": [None, None, .5]})
    write_json({"1": "liver"}, p)
    test_eq(read_json(p), {"1": "liver"})
    p.write_text('{"1": "liver",\n oops}')
    try: read_json(p)
    except InputError as e: print(str(e).replace(d, "…"))

# %%
#| hide
import nbdev; nbdev.nbdev_export()
