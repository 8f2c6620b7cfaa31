# %% [markdown]
# # Threads
#
# > How many threads to compute with on a machine that may have other work.
#
# - skip_showdoc: true

# %%
#| default_exp core.threads

# %%
#| export
import os
from collections.abc import Callable, MutableMapping
from pathlib import Path

# %%
#| hide
import tempfile
from pathlib import Path

from fastcore.test import test_eq

# %% [markdown]
# torch cuts each operation into as many pieces as there are processors, and waits until the last piece is ready. Threads that are ready earlier wait in a busy loop. This is the fastest way on an idle machine. Beside another busy process it is the slowest: one thread loses its processor to that process, and all others waste theirs until it comes back, hundreds of times a training step.
#
# The remedy is to look first, and to take as many threads as there are free processors. This must happen before torch is loaded, since OpenMP reads its settings once. So the [command line](../cli/10_console.ipynb) does it, and this module imports nothing heavy.

# %% [markdown]
# ## How many processors are there for us?
#
# Batch systems bind a process to some of the processors. Containers give it a share of their time instead, written in a file of the *control group*; torch does not read it.

# %%
#| export
CGROUP = Path("/sys/fs/cgroup/cpu.max")  # processor time allowed in a period, and the period, in microseconds

def allowed_cpus() -> list[int]:
    "The numbers of the processors that this process may run on."
    if hasattr(os, "sched_getaffinity"): return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


# %% [markdown]
# There is at least one. How many there are differs between machines, so it is not printed.

# %%
print("one or more:", len(allowed_cpus()) >= 1)
assert len(allowed_cpus()) >= 1


# %%
#| export
def cpu_share(path: Path = CGROUP) -> float:
    "How many processors' time a container's control group may use; infinite without a limit."
    try:
        time, period = path.read_text().split()
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if time == "max" else int(time)/int(period)


# %%
with tempfile.TemporaryDirectory() as d:
    limit = Path(d)/"cpu.max"
    for text in "max 100000", "150000 100000":
        limit.write_text(text)
        print(f"{text}: {cpu_share(limit)} processors")


# %% [markdown]
# ## How many of them are busy?
#
# A quarter of a second tells. The load average would need a minute, and it counts processes that wait for a disk.

# %%
#| export
def busy_cpus(
    seconds: float = 0.25, # to look for
) -> float: # in processors: 1.5 is one and a half of them
    "How much of our processors other processes use, in processors; our own process sleeps meanwhile."
    import psutil
    percent = psutil.cpu_percent(seconds, percpu=True)
    return sum(percent[i] for i in allowed_cpus() if i < len(percent))/100


# %% [markdown]
# What other processes use lies between nothing and everything.

# %%
assert 0 <= busy_cpus(0.05) <= len(allowed_cpus())


# %% [markdown]
# ## The choice
#
# One thread for each free processor, and at least one. On an idle machine the choice is left to torch, which knows the processor's cores.

# %%
#| export
def free_threads(
    cpus: int, # that this process may run on
    share: float, # of their time, in processors, see `cpu_share`
    busy: float, # processors that others use
) -> int | None: # None: torch's own choice is fine
    "How many threads to compute with; None: torch's own choice is fine."
    free = round(min(cpus - busy, share))
    return None if free >= cpus else max(1, free)


# %%
for cpus, share, busy in (
    (2, float("inf"), 0.1),
    (2, float("inf"), 1.0),
    (2, float("inf"), 2.0),
    (16, float("inf"), 3.2),
    (16, 4.0, 0.0),
):
    print(f"{cpus} processors, share {share}, {busy} busy: {free_threads(cpus, share, busy) or 'all'}")
test_eq(free_threads(1, float("inf"), 1.0), 1)

# %% [markdown]
# Other work may also begin later, when the threads have been chosen. So a thread that waits is asked to sleep instead of spinning. Whoever sets OpenMP's variables is not overruled.

# %%
#| export
POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # how threads wait: OpenMP, GNU, Intel

def set_threads(
    env: MutableMapping = os.environ, # changed, unless the user has decided
    look: Callable[[], float] = busy_cpus, # how many processors are busy
    number: int | None = None, # of threads, where it must be this one; None: by the look
) -> None:
    "Tell OpenMP how many threads to use and how they wait. To be called before torch is loaded."
    if not any(name in env for name in POLICIES):
        env["OMP_WAIT_POLICY"] = "PASSIVE"
    if "OMP_NUM_THREADS" in env: return
    if number is None:
        number = free_threads(len(allowed_cpus()), cpu_share(), look())
    if number is not None:
        env["OMP_NUM_THREADS"] = str(number)


# %%
for given in {}, {"OMP_NUM_THREADS": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}:
    env = dict(given)
    set_threads(env, look=lambda: float(len(allowed_cpus())))  # as if all were busy
    print(given, "→", env)

# %% [markdown]
# The number of threads changes the order in which numbers are added up, so results differ by rounding. So `ctseg fit --resume` takes the number that the run was started with; `recipe.json` holds it.
