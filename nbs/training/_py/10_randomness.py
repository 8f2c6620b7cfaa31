# %% [markdown]
# # Randomness
#
# > Random numbers that follow from the seed, the phase and the step, and from nothing else.

# %%
#| default_exp training.randomness

# %%
#| export
import hashlib

import torch

# %%
#| hide
from fastcore.test import test_eq


# %% [markdown]
# Kaggle stops a session after 9 to 12 hours, and a cluster when a more important job arrives. The usual remedy saves every random state (of Python, NumPy, torch, the card and the sampler) and restores them all. It is easy to forget one.
#
# Here **randomness has no state**. Everything random in a step is a function of (seed, phase, step): the order of the images, the augmentation, dropout. A resumed run needs to know only which step comes next.

# %%
#| export
def derived_seed(*parts) -> int:
    "A 63-bit seed that depends on all the parts and on nothing else: the same on every machine and in every process."
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


# %%
print(derived_seed(0, "teacher", 17), derived_seed(0, "student", 17))
assert derived_seed(0, "teacher", 17) != derived_seed(0, "student", 17)


# %% [markdown]
# A generator with such a seed draws the same numbers whenever it is made.

# %%
#| export
def generator(device: torch.device | str, *parts) -> torch.Generator:
    "A random generator on `device` whose whole state follows from the parts."
    return torch.Generator(device).manual_seed(derived_seed(*parts))


# %%
first, again = generator("cpu", 0, "teacher", 17), generator("cpu", 0, "teacher", 17)
numbers = torch.rand(3, generator=first)
test_eq(torch.rand(3, generator=again), numbers)
numbers
