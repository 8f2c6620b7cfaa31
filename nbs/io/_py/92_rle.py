# %% [markdown]
# # Run lengths
#
# > A mask as text, "start length start length …", as Kaggle's competitions write it.

# %%
#| default_exp io.rle

# %%
#| export
from dataclasses import dataclass

import numpy as np

from ctseg.core.errors import InputError, did_you_mean

# %%
#| hide
from fastcore.test import test_eq, test_fail

# %% [markdown]
# A mask is mostly long runs of equal pixels. A run-length code lists the runs that are set: where each begins, and how long it is. Two
# things differ among competitions. Most count *down the columns* (as MATLAB does) and from 1; some go along the rows, or count from 0. A
# code read in the wrong order still gives a mask, only a wrong one. So look at a picture after an import.

# %%
#| export
ORDERS = ("column", "row")

@dataclass(frozen=True)
class Coding:
    "How pixels are counted. Raises `InputError` for an order or a first number that there is not."
    order: str = "column" # down the columns, or along each row
    first: int = 1 # the number of the first pixel, 0 or 1

    def __post_init__(self):
        if self.order not in ORDERS:
            raise did_you_mean("order", self.order, ORDERS)
        if self.first not in (0, 1):
            raise InputError(f"first = {self.first}: pixels are counted from 0 or from 1")

    def __str__(self) -> str: return f"by {self.order}, counted from {self.first}"

    @property
    def layout(self) -> str:
        "The order as numpy calls it."
        return "F" if self.order == "column" else "C"


# %%
print(Coding(), "or", Coding("row", first=0))
test_fail(lambda: Coding("colum"), contains="did you mean column")
test_fail(lambda: Coding(first=2), contains="from 0 or from 1")


# %%
#| export
def encode(mask: np.ndarray, coding: Coding = Coding()) -> str:
    "A mask bool [H,W] as run lengths; an empty mask is an empty text."
    flat = np.asarray(mask, bool).ravel(coding.layout)
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    runs = np.stack([starts + coding.first, ends - starts], 1)
    return " ".join(map(str, runs.ravel().tolist()))


# %%
mask = np.array([[0, 1, 1], [0, 1, 0]], bool)
print("down the columns:", encode(mask), "| along the rows:", encode(mask, Coding("row")))
test_eq(encode(mask), "3 3")

# %% [markdown]
# ## Reading
#
# Some competitions write `-1` where nothing was found. A code that does not fit the image is refused: it belongs to an image of another
# size, or was counted in another way.

# %%
#| export
EMPTY = ("", "-1", "nan") # cells that say: examined, and nothing found


# %%
#| export
def parse_runs(code: str, where: str) -> np.ndarray: # int64 [runs,2]
    "Starts and lengths; `InputError` unless they are whole numbers, in pairs, rising and apart."
    code = code.strip()
    if code.lower() in EMPTY: return np.zeros((0, 2), np.int64)
    words = code.split()
    odd = [word for word in words if not (word.isascii() and word.isdigit())]
    if odd:
        raise InputError(f"{where}: {odd[0][:20]!r} in a run-length code, expected whole numbers: "
                         "start length start length …")
    if len(words) % 2:
        raise InputError(f"{where}: {len(words)} numbers in a run-length code, expected pairs; "
                         "is it cut off?")
    if max(map(len, words)) > 12:
        raise InputError(f"{where}: a number of more than 12 digits in a run-length code")
    runs = np.array(words, np.int64).reshape(-1, 2)
    if (runs[:, 1] < 1).any():
        raise InputError(f"{where}: a run of length 0; leave it out")
    if (runs[1:, 0] < runs[:-1].sum(1)).any():
        raise InputError(f"{where}: runs that overlap or do not rise; sort and unite them")
    return runs


# %%
print(parse_runs("3 3 10 2", "line 2").tolist(), parse_runs("-1", "line 2").tolist())
for wrong in ("3 3 10", "3 x", "3 0", "3 3 5 1"):
    try: parse_runs(wrong, "y.csv, line 2")
    except InputError as e: print("-", e)


# %%
#| export
def decode(
    code: str,
    size: tuple[int, int], # height and width
    coding: Coding = Coding(),
    where: str = "run-length code", # for messages
) -> np.ndarray: # bool [H,W]
    "The mask of a run-length code, bool [H,W]. `InputError` for a code that does not fit the image."
    runs = parse_runs(code, where)
    pixels = size[0]*size[1]
    starts = runs[:, 0] - coding.first
    ends = starts + runs[:, 1]
    if (starts < 0).any():
        raise InputError(f"{where}: a run starts at 0, but pixels are counted from 1; if they are not, "
                         "give --first 0")
    if (ends > pixels).any():
        raise InputError(f"{where}: a run ends at pixel {ends.max()}, but an image of {size[0]}x{size[1]} "
                         f"has {pixels}; is the code for images of another size?")
    steps = np.zeros(pixels + 1, np.int8)
    steps[starts] += 1
    np.subtract.at(steps, ends, 1)
    flat = np.cumsum(steps[:-1], dtype=np.int8) > 0
    return flat.reshape(size, order=coding.layout)


# %%
rng = np.random.default_rng(0)
for coding in (Coding(), Coding("row"), Coding("column", 0)):
    for _ in range(20):
        mask = rng.random((5, 7)) < .5
        test_eq(decode(encode(mask, coding), (5, 7), coding), mask)
test_fail(lambda: decode("30 9", (5, 7)), contains="a run ends at pixel 38, but an image of 5x7 has 35")
test_fail(lambda: decode("0 9", (5, 7)), contains="counted from 1")
