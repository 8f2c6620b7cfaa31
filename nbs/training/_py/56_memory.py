# %% [markdown]
# # Memory
#
# > What a training step needs at least, known before anything is allocated.

# %%
#| default_exp training.memory

# %%
#| export
import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from torch import nn

from ctseg.core.errors import InputError
from ctseg.models.base import count_parameters

# %%
#| hide
from fastcore.test import test_eq

from ctseg.models.zoo import create_model

# %% [markdown]
# A network that is too large for the memory ends in different ways. A card says so. On a CPU the system hands out more than it has, and later kills the process without a word, an hour into the night perhaps. So the least that a step needs is estimated first, and what cannot fit is refused.
#
# Weights take four bytes each, in five copies: the network, its running average, gradients, and two moments of AdamW.

# %%
#| export
COPIES = 5  # of the weights
AT_WORK = 64*2**20  # bytes for threads and libraries; Python waits for ever for a thread that cannot start

def kept_values(
    model: nn.Module, # on the meta device, where tensors have shapes and no content
    size: tuple[int, int], # height and width of the images
    channels: int = 1, # of its input
) -> int:
    "How many values of one grey image a forward pass must keep for the backward pass, at least: what convolutions, norms and linear layers return."
    counts: list[int] = []
    def count(module: nn.Module, inputs: tuple, output: object) -> None:
        if torch.is_tensor(output): counts.append(output.numel())
    layers = [m for m in model.modules() if not list(m.children()) and list(m.parameters())]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model.eval()(torch.empty(1, channels, *size, device="meta"))
    for hook in hooks: hook.remove()
    return sum(counts)


# %%
#| export
def least_bytes(
    build: Callable[[], nn.Module], # makes the network
    size: tuple[int, int], # of the images it works at
    images: int, # at a time
    precise: bool = True, # 4 bytes a value; False: 2
    channels: int = 1, # of the network's input
) -> int: # 0 where the network does not let itself be measured
    "What a training step needs at least."
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = build()
        values = kept_values(model.to("meta"), size, channels)
    except Exception:  # a network of a plugin may do anything; then the step itself will tell
        return 0
    return AT_WORK + 4*COPIES*count_parameters(model) + values*images*(4 if precise else 2)


# %%
for width in (8, 16, 4096):
    need = least_bytes(lambda: create_model("attunet", 1, 55, width=width), (256, 256), 8)
    print(f"width {width:4}: {need/2**30:.3g} GB")

# %% [markdown]
# How much there is depends on the container too. A user says it as `4GB` or `500MB`.

# %%
#| export
SIZES = {"KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}

def read_size(text: str) -> float:
    "The bytes in a size such as `4GB` or `500 MB`; `InputError` for another text."
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]B)", text.strip().upper(), re.ASCII)
    if not found:
        raise InputError(f"memory {text!r}: expected a size such as 4GB or 500MB")
    return float(found[1])*SIZES[found[2]]


# %%
print(read_size("4GB"), read_size("0.5 mb"))
try: read_size("4")
except InputError as e: print(e)

# %%
#| export
GROUP = Path("/sys/fs/cgroup")  # of a container on Linux

def group_bytes() -> float:
    "What the limit of a container leaves to its processes; infinite without a limit."
    try:
        limit, used = ((GROUP/name).read_text().strip() for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (GROUP/"memory.stat").read_text().splitlines())
        return int(limit) - int(used) + int(statistics.get("inactive_file", 0))
    except (OSError, ValueError):  # "max": no limit
        return float("inf")


# %%
#| export
def own_bytes() -> float:
    "What a limit of this process (`ulimit -v`) leaves to it; infinite without a limit."
    process = psutil.Process()
    if not hasattr(process, "rlimit"): return float("inf")  # Linux has it
    limit = process.rlimit(psutil.RLIMIT_AS)[0]
    return limit - process.memory_info().vms if limit != psutil.RLIM_INFINITY else float("inf")


# %%
#| export
def free_bytes(device: torch.device) -> float:
    "The memory that is left on a device; on a CPU with what is swapped."
    if device.type == "cuda": return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu": return float("inf")
    return min(psutil.virtual_memory().available + psutil.swap_memory().free, group_bytes(), own_bytes())

def check_memory(need: float, free: float, what: str) -> None:
    "`InputError` if a step needs more than there is."
    if need <= free: return
    needed, left = (f"{size/2**30:.1f} GB" for size in (need, free))
    problem = f"a training step needs at least {needed}, and {left} of memory are free"
    raise InputError(f"{what}: {problem}; choose a smaller image_size, batch_size or width, or more pieces")


# %%
test_eq(free_bytes(torch.device("cpu")) > 0, True)
try: check_memory(100*2**30, 16*2**30, "attunet at 1024x1024")
except InputError as e: print(e)


# %% [markdown]
# ## When it runs out all the same
#
# Python, PyTorch on a card and PyTorch on a CPU each say it in their own way.

# %%
#| export
def out_of_memory(error: Exception) -> bool:
    "Is this how Python, or PyTorch on a card or on a CPU, says so?"
    if isinstance(error, MemoryError | torch.OutOfMemoryError): return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)

@contextlib.contextmanager
def memory_errors(problem: str) -> Iterator[None]:
    "Memory that runs out inside the block becomes an `InputError` that says `problem`."
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e): raise
        raise InputError(problem) from e


# %%
def fails(error):
    with memory_errors("out of memory; take a smaller batch_size"): raise error

for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shapes differ")):
    try: fails(error)
    except (InputError, RuntimeError) as e: print(type(e).__name__, e, sep=": ")
