# %% [markdown]
# # Cache folder
#
# > The one folder outside of data and runs that the package writes to.

# %%
#| default_exp core.cache

# %%
#| export
import os
from pathlib import Path


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
