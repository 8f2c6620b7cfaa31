# %% [markdown]
# # How near are the losses to what the memory allows?
#
# > Our losses, MONAI's DiceCE and PyTorch's compiler at 8x54x256x256 on one thread, beside the time that moving the bytes alone takes.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Is there a faster loss on a CPU, and what stands in its way?
#
# **Answer.** On this processor, an Intel Xeon with AMX, the loss that says the same as MONAI's, `ce-dice`, takes 2.7 times less processor time and 0.27 of the extra memory, as PyTorch runs by itself; `marginal` and `masked`, which MONAI cannot express, 2.2 and 1.9 times less. **The three that we had aimed at is missed here.** On an AMD EPYC, which moved three times as many bytes a second, it was reached: 3.2, 3.5 and 3.7.
#
# More than half of that lead is memory that MONAI asks of the system anew in every step. Where [freed memory is kept](../core/49_allocator.ipynb), as in `ctseg`'s own training, everything is faster, MONAI's loss most, and the lead is 1.7, 1.4 and 1.1 (1.4 to 1.8 on the EPYC). The usual one-hot form, compiled by PyTorch into C++, is then as fast as `ce-dice`.
#
# **The bytes do not stand in the way**: moving those that must be moved takes a ninth to a fourteenth of our losses' time. What they spend is arithmetic in about a dozen passes over blocks that lie in the cache, one PyTorch operation each; a kernel that makes one pass could be several times faster, and we have none. Other sizes of block do not help: half of theirs takes 0.9 to 1.0 of the time here, a quarter 1.1 to 1.5, twice theirs 1.0 to 1.1. Nor does it help to write the weights as a product of what is known of an image and what is known of a pixel, so that sums over channels and pixels become matrix products: 0.9 to 1.2 of the time, in four losses, with memory kept and without.
#
# ## How it was measured
#
# One thread, float32, processor time of the process (other work on the machine matters little to it), the least of three rounds: as PyTorch does it by itself, and then with
# [the memory kept](../core/49_allocator.ipynb) that a step frees, as in `ctseg`'s own training.
# Memory is the peak of the process during forward and backward, above what it had before; each in a process of its own. That of the compiled form
# is not measured (0 in the table): compiling and a first step have needed more by then.

# %%
import importlib.metadata
import json
import platform
import subprocess
import sys

import pandas as pd

from ctseg.core.device import describe_processor

FORMS = '''
import json, resource, sys, time
import torch
from torch.nn import functional as F
torch.set_num_threads(1)
B, C, side = 8, 54, 256

def data(channels):
    g = torch.Generator().manual_seed(0)
    mask = torch.randint(0, C + 1, (B, 16, 16), generator=g).repeat_interleave(16, 1).repeat_interleave(16, 2)
    known = torch.rand(B, C, generator=g) < .5
    examined = torch.cat([torch.ones(B, 1, dtype=torch.bool), known], 1)
    mask = mask*examined.gather(1, mask.flatten(1)).view_as(mask)
    return torch.randn(B, channels, side, side, generator=g).requires_grad_(), mask, known

def one_hot(z, mask, known):
    y = F.one_hot(mask, z.shape[1]).movedim(-1, 1).float()
    p = z.softmax(1)
    overlap, size = (p*y).sum((0, 2, 3)), (p + y).sum((0, 2, 3))
    return F.cross_entropy(z, mask) + (1 - 2*overlap/(size + 1e-5))[1:].mean()

def form(name):
    if name == "one-hot": return one_hot, C + 1
    if name == "one-hot, compiled": return torch.compile(one_hot, dynamic=False), C + 1
    if name == "MONAI DiceCE":
        from monai.losses import DiceCELoss
        loss = DiceCELoss(to_onehot_y=True, softmax=True)
        return (lambda z, mask, known: loss(z, mask[:, None])), C + 1
    from ctseg.losses.registry import create_loss
    loss = create_loss(name)
    return (lambda z, mask, known: loss(z, mask, known)), loss.out_chans(C)

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def measure(f, *args):
    begin = time.process_time()
    f(*args)
    return time.process_time() - begin
'''
ONE = FORMS + '''
f, channels = form(sys.argv[1])
z, mask, known = data(channels)
if "compiled" in sys.argv[1]: f(*data(channels)).backward()  # compiles

def least(rounds=3):
    times = []
    for _ in range(rounds):
        z.grad = None
        times.append(measure(lambda: f(z, mask, known).backward()))
    return min(times)

from ctseg.core.allocator import memory_kept
before = peak()
usual, more = least(), peak() - before
with memory_kept(): kept = least(4)
print(json.dumps({"s": usual, "s, memory kept": kept, "MB": more}))
'''
BOUND = FORMS + '''
z, _, _ = data(C)
z = z.detach()
out = torch.empty_like(z)
best = lambda f: min(measure(f) for _ in range(3))
print(json.dumps({
    "bytes": z.numel()*4,
    "copy": best(lambda: out.copy_(z)),
    "read": best(lambda: z.sum()),
    "exp": best(lambda: torch.exp2(z, out=out)),
    "sigmoid": best(lambda: torch.sigmoid(z, out=out)),
}))
'''


def run(program: str, *args) -> dict:
    "What a program in a process of its own prints at its end."
    words = [sys.executable, "-W", "ignore", "-c", program, *args]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode: return {"s": float("nan"), "s, memory kept": float("nan"), "MB": float("nan")}
    return json.loads(done.stdout.splitlines()[-1])


packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "monai"))
print(f"Python {platform.python_version()}, {packages}, {describe_processor()}")

# %% [markdown]
# ## The bytes
#
# The logits are 113 MB. A loss whose gradient is wanted must read them for the value, read them again for the gradient (nothing else that it needs is smaller to keep), and
# write the gradient: three times 113 MB. And each logit needs one exponential for the value and one for the gradient, or room to keep it.

# %%
bound = run(BOUND)
size = bound["bytes"]
read_rate, copy_rate = size/bound["read"]/2**30, 2*size/bound["copy"]/2**30
least = bound["read"] + bound["copy"]
print(f"read {read_rate:.1f} GB/s, copied {copy_rate:.1f} GB/s (read and written)")
print(f"to read twice and write once: {least:.3f} s")
twice = {name: 2*bound[name] for name in ("exp", "sigmoid")}
others = f"two logistic functions: {twice['sigmoid']:.3f} s"
print(f"two exponentials a logit beside it: {twice['exp']:.3f} s; {others}")

# %%
#| hide
NAMES = ["masked", "marginal", "ce-dice", "MONAI DiceCE", "one-hot", "one-hot, compiled"]
rows = {name: run(ONE, name) for name in NAMES}

# %%
table = pd.DataFrame(rows).T
for mode in ("", ", memory kept"):
    table[f"MONAI's time over it{mode}"] = table.loc["MONAI DiceCE", f"s{mode}"]/table[f"s{mode}"]
table["its time over the bytes', memory kept"] = table["s, memory kept"]/least
table.style.set_uuid("losses").format("{:.2f}").format("{:.0f}", subset="MB")

# %% [markdown]
# ## What the last pixels of a row cost
#
# The losses work on blocks of about 2^18 logits. Here these are rows of 606 pixels within longer ones, and PyTorch computes the last 30 of each row one by one, since its vectors hold 32.
# That is dear where an operation is, such as the logarithm and exponential of `masked`. So the losses with sigmoid outputs copy a block first, which makes it one long row: on the EPYC 0.112 s instead of 0.144, memory kept.
# In float32 one of 800 values of the gradient differs in its last digit from before; in bfloat16, and where a block is all there is, nothing differs.
# The softmax losses use a cheap power of two in rows of their own, and gain nothing.
