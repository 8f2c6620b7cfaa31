# %% [markdown]
# # Loading
#
# > Why a command loads PyTorch sooner while Python's collector rests.
#
# - skip_showdoc: true

# %%
#| default_exp core.loading

# %%
#| export
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# %%
#| hide
from fastcore.test import test_eq


# %% [markdown]
# Python's *collector* looks for objects that refer to each other and that nobody else needs. It looks again whenever some hundred new objects have been made. PyTorch with its compiler makes half a million of them while it is loaded. All of them stay, so the collector searches in vain: a tenth of the time until a training begins.
#
# So it rests inside the block. A command goes further: what its modules have made is *frozen*, which means that the collector never looks at it again. Only a command may do so, since it alone knows that nothing but modules has been made so far.

# %%
#| export
@contextmanager
def collector_rests(
    freeze: bool = False, # never look at anything that exists at the end of the block
) -> Iterator[None]:
    "Within the block, or the function that it decorates, nobody searches for unreachable objects. Nothing happens where the user has switched the collector off."
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if freeze: gc.freeze()
        gc.enable()


# %% [markdown]
# Ten thousand lists make the collector look more than once, but not inside the block.

# %%
class Count:
    "How often the collector has looked."
    def __init__(self): self.times = 0
    def __call__(self, phase: str, facts: dict) -> None: self.times += phase == "start"

counted = Count()
gc.callbacks.append(counted)
with collector_rests():
    inside = [[] for _ in range(10_000)]
    at_rest = counted.times
outside = [[] for _ in range(10_000)]
gc.callbacks.remove(counted)
print("inside:", at_rest, " afterwards more than once:", counted.times > 1)
test_eq((at_rest, gc.isenabled()), (0, True))
assert counted.times > 1

# %% [markdown]
# It works again after an error. One block may stand in another; the inner one changes nothing.

# %%
try:
    with collector_rests():
        with collector_rests(): pass
        test_eq(gc.isenabled(), False)
        raise KeyError
except KeyError: pass
test_eq(gc.isenabled(), True)
