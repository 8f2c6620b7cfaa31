# %% [markdown]
# # Cache folder
#
# > The one folder outside of data and runs that the package writes to.

# %%
#| default_exp core.cache

# %%
#| export
import os
import stat
import warnings
from pathlib import Path

# %%
#| hide
import tempfile

from fastcore.test import test_eq


# %% [markdown]
# Arrays that were read and plugins that were given are kept for the next time. `CTSEG_CACHE` moves the folder, for instance to a disk with more room.

# %%
#| export
def cache_dir() -> Path:
    "Where the package keeps what it has read before: the environment's `CTSEG_CACHE`, else `~/.cache/ctseg`. Safe to delete."
    return Path(os.environ.get("CTSEG_CACHE") or Path.home()/".cache"/"ctseg")


# %%
os.environ["CTSEG_CACHE"] = "/scratch/ctseg"
print(cache_dir())


# %% [markdown]
# What is in the cache is believed, so nobody else may write there. A folder that is made is open to its user alone. One that belongs to somebody else, or that others may write to, is not used: reading is slower then, and nothing else changes.

# %%
#| export
def others_may_write(folder: Path) -> bool:
    "Does a folder belong to somebody else, or may others put files into it? False where the system has no such rights."
    if not hasattr(os, "getuid"): return False
    state = folder.stat()
    return state.st_uid != os.getuid() or bool(state.st_mode & (stat.S_IWGRP | stat.S_IWOTH))

_told: set[Path|None] = set()


# %%
#| export
def own_cache(inside: str = "") -> Path | None:
    "The cache, or a folder `inside` it, made where it is missing; None, with a warning once, if it cannot be made or believed."
    top = None
    try:
        top = cache_dir()
        top.parent.mkdir(parents=True, exist_ok=True)
        top.mkdir(mode=0o700, exist_ok=True)
        (top/inside).mkdir(mode=0o700, exist_ok=True)
        if not others_may_write(top) and not others_may_write(top/inside):
            return top/inside
        problem = "others may write to it, chmod 700 it or choose another CTSEG_CACHE"
    except OSError as e:
        problem = e.strerror
    except RuntimeError:  # of Path.home, for a user without an entry, as some containers have
        problem = "no home folder is known, set HOME or CTSEG_CACHE"
    if top not in _told:
        which = f"the cache {top}" if top else "the cache"
        warnings.warn(f"{which} is not used, reading will not be faster next time: {problem}")
    _told.add(top)
    return None


# %%
with tempfile.TemporaryDirectory() as d:
    os.environ["CTSEG_CACHE"] = f"{d}/cache"
    test_eq(own_cache("seen"), Path(d)/"cache"/"seen")
    test_eq(stat.S_IMODE(cache_dir().stat().st_mode) & 0o077, 0)
    if hasattr(os, "getuid"):
        cache_dir().chmod(0o777)
        with warnings.catch_warnings(record=True) as told: test_eq(own_cache(), None)
        print(str(told[0].message).replace(d, "…"))
