# %% [markdown]
# # How near are the losses to what the memory allows?
#
# > Our losses, MONAI's DiceCE and PyTorch's compiler at 8x54x256x256 on one thread, beside the time that moving the bytes alone takes.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Is there a faster loss on a CPU, and what stands in its way?
#
# **Answer.** The loss that says the same as MONAI's, `ce-dice`, takes 3.5 times less processor time and 0.29 of the extra memory; `marginal` and `masked`, which MONAI cannot express, 3.0 and 2.7
# times less. The usual one-hot form, compiled by PyTorch into C++, is 1.5 times slower than `ce-dice`. **The memory does not stand in the way**: moving the bytes that must be moved takes a
# seventeenth to a twenty-first of our losses' time here. What they spend is arithmetic in about a dozen passes over blocks that lie in the cache, one PyTorch operation each; a kernel that makes one
# pass could be several times faster, and we have none.
#
# ## How it was measured
#
# One thread, float32, processor time of the process (other work on the machine matters little to it), the least of three rounds in turn.
# Memory is the peak of the process during forward and backward, above what it had before; each in a process of its own. That of the compiled form
# is not measured (0 in the table): compiling and a first step have needed more by then.

# %%
import importlib.metadata
import json
import platform
import subprocess
import sys

import pandas as pd
import torch

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

EVEN = ", blocks of 32 k pixels"

def even_slices(logits, whole=None):
    rows, pixels = logits.shape[0]*logits.shape[1], logits.shape[2]
    step = max(32, 2**18//rows//32*32)
    return [slice(start, start + step) for start in range(0, pixels, step)]

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
    from ctseg.losses import fused
    from ctseg.losses.registry import create_loss
    if name.endswith(EVEN): fused.pixel_slices = even_slices
    loss = create_loss(name.removesuffix(EVEN))
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
before, begin = peak(), []
for _ in range(3):
    z.grad = None
    begin.append(measure(lambda: f(z, mask, known).backward()))
print(json.dumps({"s": min(begin), "MB": peak() - before}))
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
    if done.returncode: return {"s": float("nan"), "MB": float("nan")}
    return json.loads(done.stdout.splitlines()[-1])


with open("/proc/cpuinfo") as f: text = f.read()
flags = next(line for line in text.splitlines() if line.startswith("flags"))
kinds = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {name}" in flags]
packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "monai"))
print(f"Python {platform.python_version()}, {packages}, {platform.machine()} with {', '.join(kinds)}")

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
EVEN = ", blocks of 32 k pixels"
NAMES = ["masked", f"masked{EVEN}", "marginal", f"marginal{EVEN}", "ce-dice"]
NAMES += ["MONAI DiceCE", "one-hot", "one-hot, compiled"]
rows = {name: run(ONE, name) for name in NAMES}

# %%
table = pd.DataFrame(rows).T
table["MONAI's time over it"] = table.loc["MONAI DiceCE", "s"]/table["s"]
table["its time over the bytes'"] = table["s"]/least
table.style.set_uuid("losses").format("{:.2f}").format("{:.0f}", subset="MB")

# %% [markdown]
# ## What the last pixels of a row cost
#
# The losses work on blocks of about 2^18 logits. Here these are rows of 606 pixels, and PyTorch computes the last 30 of each row one by one, since its vectors hold 32.
# That is dear where an operation is, such as the logarithm and exponential of `masked`. With rows of a multiple of 32 pixels that loss too is three times as fast as MONAI's; the softmax losses, which use
# a cheap power of two, gain little. We have left the blocks as they are: others add up in another order, so every run trained before would differ from its repetition in the last digits.
