# %% [markdown]
# # Several processes
#
# > Two cards, or twenty, must learn what one would have learnt: what is shared out, what is gathered, and who writes.
#
# - skip_showdoc: true

# %%
#| default_exp parallel

# %% [markdown]
# PyTorch's way to use several cards is one *process* a card: each holds the whole network, works on its share of a batch, and the gradients are averaged
# (`DistributedDataParallel`, started by `torchrun` or `accelerate launch`). Averaging is right when the loss is a mean over images. Ours is not, and three more things differ quietly:
#
# | what differs | because | what we do |
# |---|---|---|
# | the Dice over the batch | a ratio of sums is not the mean of ratios | the sums of all images, a few numbers each, are gathered; every process computes the same, whole loss |
# | BatchNorm | each process sees the statistics of its own share | synchronised: the statistics are those of the whole batch |
# | random numbers | each process draws its own | every process draws those of the whole batch and takes its share: augmentation, CutMix partners and boxes, dropped features |
# | pseudo-labels | rounding differs between cards | each process labels a share, and all take the collection |
#
# With that, two processes with 8 images each do what one does with 16, up to rounding. (`tests/test_train.py` holds the losses of 20 steps of every method against each other, to 1e-5 and in double precision. In float32 a different order of
# a sum is enough for two runs to drift apart slowly, with or without several processes: where a gradient is zero but for rounding, Adam divides the rounding by itself.) This page has the tools, [the loop](train.html) uses them. One thing stays apart: dropout *inside* a network (UCTransNet, drop path
# in some encoders, the presence head) is drawn by each process for itself, with the same distribution but not the same numbers.

# %%
#| export
import os, sys

import torch
import torch.distributed as dist
from torch import nn

from ctseg.files import InputError
from ctseg.models.base import import_timm

# %%
#| hide
import subprocess, sys, tempfile
from pathlib import Path
from fastcore.test import test_eq


# %% [markdown]
# ## Who am I
#
# Everything below also works without any of it: one process, number 0.

# %%
#| export
def world() -> int:
    "How many processes train together."
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

def rank() -> int:
    "The number of this process; 0 writes the files."
    return dist.get_rank() if world() > 1 else 0

def _wire() -> torch.device:
    "Where a tensor must be to be sent: NCCL sends from cards only."
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


# %% [markdown]
# ## Rows
#
# A batch is dealt like cards: process `r` of `W` gets the rows `r, r+W, r+2W, …`. `gather_rows` puts the rows of all processes together again in the old order.
#
# And the gradient? Every process computes the same loss $\ell$ from the gathered rows, so each knows $\partial\ell/\partial(\text{own rows})$ without asking. The gradients of the weights must then be *added up* over the processes, and
# `DistributedDataParallel` takes their *mean*; hence the factor $W$.

# %%
#| export
class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        parts = [torch.empty_like(t) for _ in range(world())]
        dist.all_gather(parts, t)
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx, grad): return world()*grad[rank()::world()]

def gather_rows(
    t: torch.Tensor, # [b, ...], the same shape in all processes
) -> torch.Tensor: # [b*world, ...]
    "The rows of all processes, in the order of the whole batch; the gradient of the own rows is scaled so that its mean over the processes is their sum."
    if world() == 1: return t
    if t.dtype == torch.bool: return gather_rows(t.byte()).bool()
    return _GatherRows.apply(t.contiguous())


# %% [markdown]
# Work that needs no gradient (a teacher's answers, validation) is dealt and collected in the same way, with the last round filled up so that all have equally much.

# %%
#| export
def own_share(n: int) -> torch.Tensor:
    "Which of `n` pieces of work are this process's: equally many for all, some twice where they do not come out even."
    return torch.arange(rank(), -(-n//world())*world(), world()) % n

def collect(t: torch.Tensor, n: int) -> torch.Tensor:
    "The results of all `n` pieces of work, from what each process made of its `own_share`."
    if world() == 1: return t
    return gather_rows(t.to(_wire())).to(t.device)[:n]


# %%
t = torch.arange(6.).reshape(3, 2)
assert gather_rows(t) is t and world() == 1 and rank() == 0
test_eq(own_share(5).tolist(), [0, 1, 2, 3, 4])


# %% [markdown]
# ## Batch normalisation
#
# PyTorch has a `SyncBatchNorm`, for cards only. On CPUs (where we test) the same is quickly written: sums of $x$ and $x^2$ over all processes, in double precision because they will be subtracted. timm's variety of batch normalisation, with dropout and activation built in, keeps them.

# %%
#| export
class _SumAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        dist.all_reduce(t := t.clone())
        return t
    @staticmethod
    def backward(ctx, grad): return _SumAll.forward(ctx, grad.contiguous())

class GlooBatchNorm(nn.BatchNorm2d):
    "Batch normalisation over the images of all processes (Ioffe & Szegedy 2015), on devices that `SyncBatchNorm` does not serve."
    def forward(self, x):
        x = self._over_all(x) if self.training and world() > 1 else super().forward(x)
        return self.act(self.drop(x)) if hasattr(self, "act") else x

    def _over_all(self, x):
        n, channel = world()*x.numel()/x.shape[1], lambda t: t.to(x.dtype)[:, None, None]  # all processes have equally many images
        wide = x.double()
        mean, square = _SumAll.apply(torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])/n)
        var = square - mean.square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var*n/(n - 1)).to(self.running_var.dtype), self.momentum)
        return (x - channel(mean))*channel((var + self.eps).rsqrt()*self.weight) + channel(self.bias)


# %%
#| export
def synchronise(model: nn.Module) -> nn.Module:
    "`model` with batch statistics over all processes; with one process, `model` as it is. Names of weights do not change."
    if world() == 1: return model
    if dist.get_backend() == "nccl":
        import_timm()
        from timm.layers import convert_sync_batchnorm  # knows timm's own variety beside PyTorch's
        return convert_sync_batchnorm(model)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.__class__ = GlooBatchNorm
    return model


# %% [markdown]
# And the end. A process of several that has done its work takes PyTorch's communication apart, and once in some hundred times, on a busy machine, aborts over a thread that is still in there (`terminate called without an active exception`), whether the process group was destroyed first or not.
# Everything is written by then, but `torchrun` reports a failure. So it leaves without taking anything apart.

# %%
#| export
def leave(status: int = 0):
    "End this process at once, if it is one of several; files and streams must have been closed or are flushed."
    if world() == 1: return
    for stream in (sys.stdout, sys.stderr): stream.flush()
    os._exit(status)


# %% [markdown]
# Does it hold? Two processes with two images each, against one with four: a small network with batch normalisation, and a loss that is a ratio of sums over the batch.

# %%
script = """
import sys, torch, torch.distributed as dist
from torch import nn
from ctseg.parallel import gather_rows, leave, rank, synchronise, world
torch.set_num_threads(1)
if len(sys.argv) > 1: dist.init_process_group("gloo")
torch.manual_seed(0)
model = synchronise(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1)))
if world() > 1: model = nn.parallel.DistributedDataParallel(model)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
images, truth = torch.rand(4, 1, 12, 12), (torch.rand(4, 100) > 0.7).float()
for step in range(3):
    p = model(images[rank()::world()]).sigmoid().flatten(1)
    y = truth[rank()::world()]
    TP, P, T = gather_rows((p*y).sum(1)), gather_rows(p.sum(1)), gather_rows(y.sum(1))
    loss = 1 - 2*TP.sum()/(P.sum() + T.sum())
    opt.zero_grad(); loss.backward(); opt.step()
    if rank() == 0: print(f"{loss.item():.5f}", end=" ")
mean = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean
if rank() == 0: print("  running means", [round(v, 4) for v in mean.tolist()])
leave()
"""
with tempfile.TemporaryDirectory() as d:
    path = Path(d)/"two.py"
    path.write_text(script)
    run = lambda *command: subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    one, two = run(path), run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", path, "gloo")
print("one process   ", one)
print("two processes ", two)
test_eq(one, two)


# %% [markdown]
# ## Only one writes
#
# The run folder is written by process 0. What can fail there must fail everywhere, or the others would wait for ever; and it should be *told* once.

# %%
#| export
def on_main(f):
    "Call `f` in process 0 only; what it raises is raised in all. Returns its result in process 0, None elsewhere."
    if world() == 1: return f()
    result, failed = None, [None]
    if rank() == 0:
        try: result = f()
        except Exception as e: failed, problem = [f"{type(e).__name__}: {e}"], e
    dist.broadcast_object_list(failed, device=_wire())
    if failed[0] is None: return result
    if rank() == 0: raise problem
    raise Elsewhere(failed[0])

class Elsewhere(InputError):
    "Process 0 has failed, and has told why."
    told = True

def main_first(f):
    "Call `f` in process 0, then in the others (which then find its cache)."
    result = on_main(f)
    return result if rank() == 0 else f()

def agree(flag: bool) -> bool:
    "Does any process say yes?"
    if world() == 1: return flag
    t = torch.tensor([float(flag)], device=_wire())
    dist.all_reduce(t, dist.ReduceOp.MAX)
    return bool(t.item())

def must_be_alike(value: int, complaint: str):
    "`InputError` in all processes, told once, unless all have the same `value`."
    if world() == 1: return
    t = torch.tensor([float(value), -float(value)], device=_wire())
    dist.all_reduce(t, dist.ReduceOp.MAX)
    if t[0] + t[1]: raise (Elsewhere if rank() else InputError)(complaint)


# %% [markdown]
# ## Starting them
#
# Nothing but the launcher's own flags is needed. The two T4 of a Kaggle notebook:
#
# ```
# !torchrun --standalone --nproc_per_node=2 -m ctseg fit DATA --out runs/two --recipe masked --set batch_size=16
# ```
#
# Two hosts with four cards each under Slurm (the run folder on a disk that both see):
#
# ```
# srun --nodes=2 --ntasks-per-node=1 torchrun --nnodes=2 --nproc_per_node=4 --rdzv-backend=c10d --rdzv-id=$SLURM_JOB_ID --rdzv-endpoint=$(scontrol show hostnames $SLURM_NODELIST | head -1):29500 -m ctseg fit DATA --out runs/eight --set batch_size=64
# ```
#
# `accelerate launch -m ctseg fit …` works as well. `batch_size` is that of all processes together and must be a multiple of their number. What each process does for the whole batch, rather than for its share, is
# the augmentation; that is cheap beside the network's work, but does not shrink with more processes.

# %%
#| hide
import nbdev; nbdev.nbdev_export()
