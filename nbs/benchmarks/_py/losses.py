# %% [markdown]
# # What do the losses cost?
#
# > Forward and backward of each loss against the same loss through one-hot tensors, and against MONAI's: time and extra memory.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Is it worth the trouble to write losses without one-hot tensors?
#
# **Answer.** Yes. Values and gradients are the same, in a seventh to three tenths of the time and with a fifth to a third of the extra memory, for volumes as for slices. MONAI's `DiceCELoss` takes 1.5 to 1.9 times as long and four times the memory. A part of its time goes into memory that is asked of the system anew; [another page](loss_bound.ipynb) has both with memory that is kept, and says what stands in the way of more.
#
# That is on an Intel Xeon with AMX, which other programs shared. On an AMD EPYC the time was a twelfth to a seventh of that of the one-hot forms, and MONAI took 2.8 to 4.1 times as long.
#
# ## How it was measured
#
# [Losses](../losses/20_fused.ipynb) never build a one-hot tensor and state their own gradients. The one-hot forms
# below are the same formulas in the ordinary PyTorch way, as one would write them without thinking of memory; both give the same value
# and gradient (checked here too). MONAI's `DiceCELoss`, which cannot express unknown cells, is measured where it happens to be installed.
#
# The logits are float32, with one thread; what counts is the **CPU time** of the process (user + system, so that other work on the machine does not
# matter). The forms take turns for five rounds, and the least counts. Memory is the peak resident set during one forward and backward minus
# what was resident before (so the gradient itself, as large as the logits, is in it), each in a process of its own.

# %%
import importlib.metadata, itertools, subprocess, sys, time

import pandas as pd
import torch
from torch.nn import functional as F

from ctseg.core.device import describe_processor
from ctseg.losses.registry import create_loss

torch.set_num_threads(1)

# %%
ONE_HOT = '''
def cells(known, z): return known.reshape(*known.shape, *[1]*(z.ndim - 2))

def dice(p, y, w):
    pixels = (0, *range(2, p.ndim))
    TP, P, T = (p*y*w).sum(pixels), (p*w).sum(pixels), (y*w).sum(pixels)
    return (1 - 2*TP/(P + T + 1e-5))[T > 0].mean()

def masked(z, mask, known):
    y = F.one_hot(mask, z.shape[1] + 1).movedim(-1, 1)[:, 1:].float()
    w = (cells(known, z) | (mask > 0)[:, None]).float()
    cross_entropy = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    return .5*(cross_entropy*w).sum()/w.sum() + dice(z.sigmoid(), y, w)

def marginal(z, mask, known):
    y = F.one_hot(mask, z.shape[1]).movedim(-1, 1).float()
    w = (cells(known, z) | (mask > 0)[:, None]).float()
    open_answers = cells(torch.cat([torch.ones_like(known[:, :1]), ~known], 1), z).float()
    allowed = torch.where((mask > 0)[:, None], y, open_answers)
    p = z.softmax(1)
    return -torch.log((p*allowed).sum(1)).mean() + dice(p[:, 1:], y[:, 1:], w)

def ce_dice(z, mask, known):
    y = F.one_hot(mask, z.shape[1]).movedim(-1, 1).float()
    return F.cross_entropy(z, mask) + dice(z.softmax(1)[:, 1:], y[:, 1:], torch.ones(()))

def seed_dice(z, mask, known):
    y, p = F.one_hot(mask, z.shape[1]).movedim(-1, 1).float(), z.softmax(1)
    pixels = (0, *range(2, p.ndim))
    return 1 - (2*(p*y).sum(pixels)/((p + y).sum(pixels) + 1e-6)).mean()
'''
exec(ONE_HOT)
PAIRS = {"masked": "masked", "marginal": "marginal", "ce-dice": "ce_dice", "dice": "seed_dice"}

# %% [markdown]
# Truth in blocks of 16 pixels with all 54 classes, half of them examined on each image: the worst case, as real masks are emptier.

# %%
DATA = '''
def data(B, C, chans, depth=0):
    g = torch.Generator().manual_seed(0)
    if depth: B = B*depth
    mask = torch.randint(0, C + 1, (B, 16, 16), generator=g).repeat_interleave(16, 1).repeat_interleave(16, 2)
    known = torch.rand(B, C, generator=g) < .5
    examined = torch.cat([torch.ones(B, 1, dtype=torch.bool), known], 1)
    mask = mask*examined.gather(1, mask.flatten(1)).view_as(mask)
    z = torch.randn(B, chans, 256, 256, generator=g)
    if depth:  # the same pixels as volumes [B/depth, chans, depth, 256, 256], examined as a whole
        known = known[:1].expand(B//depth, -1)
        mask = mask*torch.cat([torch.ones(1, 1, dtype=torch.bool), known[:1]], 1)[0][mask]
        z, mask = z.unflatten(0, (-1, depth)).transpose(1, 2).contiguous(), mask.unflatten(0, (-1, depth))
    return z.requires_grad_(), mask, known
'''
exec(DATA)
MONAI = '''
from monai.losses import DiceCELoss
monai_loss = DiceCELoss(to_onehot_y=True, softmax=True)
monai = lambda z, mask, known: monai_loss(z, mask[:, None])
'''
try:
    exec(MONAI)
    versions = f", MONAI {importlib.metadata.version('monai')}"
except ImportError: monai, versions = None, ""

def seconds(forms, B, C, chans, depth=0, rounds=5):
    "Least CPU time of forward + backward of each form, taking turns."
    z, mask, known = data(B, C, chans, depth)
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(rounds):
        for name, f in forms.items():
            z.grad = None
            start = time.process_time()
            f(z, mask, known).backward()
            best[name] = min(best[name], time.process_time() - start)
    return best


# %%
PROGRAM = f'''
import sys; sys.path += {{path!r}}
import torch
from torch.nn import functional as F
from ctseg.losses.registry import create_loss
torch.set_num_threads(1)
{ONE_HOT}{DATA}
{{loss}}
z, mask, known = data(*{{shape}})
# loads what is loaded on first use
f(z[..., :16, :16].contiguous(), mask[..., :16, :16].contiguous(), known).backward()
z.grad = None
status = lambda key: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))/1024
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
before = status("VmRSS")
f(z, mask, known).backward()
print(status("VmHWM") - before)
'''

def memory(loss, *shape):
    "Extra peak memory of forward + backward in MB, in a fresh process."
    code = PROGRAM.format(path=[p for p in sys.path if p], loss=loss, shape=shape)
    return float(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )


# %% [markdown]
# ## Against one-hot tensors, at 4 x 55 x 256 x 256, and in volumes at 1 x 55 x 4 x 256 x 256

# %%
print(f"{describe_processor()}, one thread; PyTorch {torch.__version__}{versions}")
rows = []
for (name, plain), (batch, depth) in itertools.product(PAIRS.items(), ((4, 0), (1, 4))):
    loss, chans = create_loss(name), 54 + (name != "masked")
    z, mask, known = data(1, 54, chans, depth)
    a, b = loss(z, mask, known), globals()[plain](z, mask, known)
    assert torch.allclose(a, b, rtol=1e-4) and torch.allclose(
        *(torch.autograd.grad(v, z)[0] for v in (a, b)), rtol=1e-3, atol=1e-8
    ), name
    shape = batch, 54, chans, depth
    t = seconds({"ctseg": loss, "one-hot": globals()[plain]}, *shape)
    m = {"ctseg": memory(f"f = create_loss({name!r})", *shape), "one-hot": memory(f"f = {plain}", *shape)}
    rows.append(
        {
            "loss": name,
            "pixels": "volumes" if depth else "slices",
            "ctseg s": t["ctseg"],
            "one-hot s": t["one-hot"],
            "time ratio": t["ctseg"]/t["one-hot"],
            "ctseg MB": m["ctseg"],
            "one-hot MB": m["one-hot"],
            "memory ratio": m["ctseg"]/m["one-hot"],
        }
    )
rows = pd.DataFrame(rows).set_index(["loss", "pixels"])
rows.round({"ctseg s": 3, "one-hot s": 3, "time ratio": 2, "ctseg MB": 0, "one-hot MB": 0, "memory ratio": 2})

# %%
assert (rows["time ratio"] <= .5).all() and (rows["memory ratio"] <= .7).all()

# %% [markdown]
# The logits, and so their gradient, are 55 MB: that much no form can avoid. Ours needs little else.
#
# ## Against MONAI's DiceCE, at 8 x 54 x 256 x 256

# %%
rows, shape = [], (8, 53, 54)
base = memory(MONAI + "\nf = monai", *shape) if monai else None
for name in PAIRS if monai else ():
    own = (8, 54, 54) if name == "masked" else shape  # a sigmoid has no background channel
    t, m = seconds({"monai": monai}, *shape) | seconds({name: create_loss(name)}, *own), memory(
        f"f = create_loss({name!r})", *own
    )
    rows.append({"loss": name, "ctseg s": t[name], "MONAI s": t["monai"], "times faster": t["monai"]/t[name],
                 "ctseg MB": m, "MONAI MB": base, "memory ratio": m/base})
pd.DataFrame(rows).round(
    {"ctseg s": 3, "MONAI s": 3, "times faster": 2, "ctseg MB": 0, "MONAI MB": 0, "memory ratio": 2}
)
