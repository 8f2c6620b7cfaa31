# %% [markdown]
# # Memory that is kept
#
# > Why a step on a CPU need not ask the system for the same memory again, and how it is kept.
#
# - skip_showdoc: true

# %%
#| default_exp core.allocator

# %%
#| export
import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

# %%
#| hide
import resource

from fastcore.test import test_eq


# %% [markdown]
# On a CPU every intermediate result of a network takes memory of its own and frees it soon after. The C library of Linux (glibc) keeps small blocks for the next request. A block of more than 32 MB it asks of the system and gives back at once, and the system fills every new page with zeros before it hands it out. A batch of eight images of 256x256 with 16 channels is such a block, so with large images a step spends a seventh of its time on zeros that nobody reads, and a prediction a fifth ([measured](../benchmarks/step_shares.ipynb)).
#
# The remedy is to keep all that is freed while a network is at work, and to do as usual afterwards. No number changes. [Training](../training/70_loop.ipynb) and [prediction](../inference/20_loop.ipynb) do so; a training gives back what it has kept at its end.

# %%
#| export
def c_function(name: str) -> Callable | None:
    "A function of the C library on Linux, if it has it."
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


# %%
test_eq(c_function("no_such_function"), None)

# %% [markdown]
# Four settings of glibc say what it keeps. It adapts two of them itself until one is changed; the usual values below are those at which this adaptation ends.

# %%
#| export
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # their numbers in malloc.h
KEPT = {
    M_MMAP_MAX: 0,         # no block is asked of the system by itself
    M_TRIM_THRESHOLD: -1,  # nothing is given back
    M_TOP_PAD: 2**26,      # bytes that are asked for beyond what is needed
}
USUAL = {M_MMAP_MAX: 2**16, M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_TOP_PAD: 2**17}

def user_decides(env: Mapping = os.environ) -> bool:
    "Did the user set any of these four by a variable of the environment?"
    own = ("MALLOC_MMAP_", "MALLOC_TRIM_", "MALLOC_TOP_")
    return any(name.startswith(own) for name in env) or "malloc" in env.get("GLIBC_TUNABLES", "")

def tune_allocator(values: dict[int, int]) -> None:
    "Set what glibc keeps, unless the user has. Nothing happens where there is another C library."
    mallopt = c_function("mallopt")
    if mallopt is None or user_decides(): return
    for number, value in values.items():
        mallopt(number, value)


# %%
one, other = {"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=0"}
for env in {}, one, {"MALLOC_TOP_PAD_": "0"}, other:
    print(env, "→", "as the user says" if user_decides(env) else "as it is best")

# %%
#| export
_inside = 0  # how many contexts are open, one in another

@contextmanager
def memory_kept() -> Iterator[None]:
    "Context or decorator: memory that is freed inside is kept for the next request. Results do not change."
    global _inside
    if not _inside: tune_allocator(KEPT)
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1
        if not _inside: tune_allocator(USUAL)


def return_freed() -> None:
    "Give what was freed and kept back to the system."
    trim = c_function("malloc_trim")
    if trim: trim(0)


# %% [markdown]
# A block of 64 MB is made and freed eight times. Kept, it needs new pages once at most. (A process with large holes in its memory needs none either way.)

# %%
def new_pages(times: int = 8) -> int:
    "Pages that the system has to provide for some blocks of 64 MB, one after another."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times): b"x"*2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = new_pages()
with memory_kept():
    kept = new_pages()
return_freed()
print("no more pages than before:", kept <= usual)
