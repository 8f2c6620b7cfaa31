# %% [markdown]
# # How fast are the masks read?
#
# > The challenge's mask table, 2000 columns and 65,536 rows, against pandas and Arrow: time and peak memory.
#
# - skip_showdoc: true

# %% [markdown]
# **Question.** Is a parser of our own for the challenge's mask table worth having?
#
# **Answer.** Yes: the first read is eight times faster than pandas with a sixth of its peak memory, and three times faster than Arrow. Later reads, from the cache, take a twentieth of a second.
#
# ## How it was measured
#
# [Data](../data/70_challenge.ipynb) reads `y_train.csv` with a small parser of its own, because the table is so regular. The table here has the size and the look of the challenge's
# (its own may not be redistributed): 2000 masks of
# 256x256, of which 800 hold up to nine discs of 54 classes.

# %%
import json, os, platform, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow

import ctseg
from ctseg.data.mask_csv import write_masks

# %%
rng = np.random.default_rng(0)
y, x = np.mgrid[:256, :256]
masks = np.zeros((2000, 256, 256), np.uint8)
for mask in masks[:800]:
    for cy, cx, r, c in zip(
        *rng.integers([[30], [30], [4], [1]], [[226], [226], [45], [55]], (4, rng.integers(0, 10)))
    ):
        mask[(y - cy)**2 + (x - cx)**2 < r*r] = c
folder = tempfile.TemporaryDirectory()
csv = Path(folder.name)/"y_train.csv"
names = [f"{i}.png" for i in range(2000)]
write_masks(masks, names, csv)
write_masks(masks, names, f"{csv}.gz")
np.save(f"{folder.name}/truth.npy", masks)
del masks, mask
print(f"csv {csv.stat().st_size/1e6:.0f} MB, csv.gz {Path(f'{csv}.gz').stat().st_size/1e6:.1f} MB")

# %% [markdown]
# Each reading is a process of its own, so that no one inherits another's memory. The clock runs from after the imports to the finished
# array `[images, pixels]`; memory is the peak resident set of the *whole* process, imports included (ctseg imports PyTorch, which counts
# against it). Each result is compared with the masks that were written. The file is in the operating system's page cache for all. The
# readers take turns, three rounds; as the machine may be shared, the shortest time of each counts, and the processor time is given beside
# the time on the wall.

# %%
READERS = {
    "pandas": ("import pandas as pd", "a = pd.read_csv(path, index_col=0).T.to_numpy()"),
    "arrow": ("import numpy as np, pyarrow as pa, pyarrow.csv as pc", """
with pa.input_stream(path, compression="detect") as f:
    names = f.read(1 << 16).decode().split("\\n")[0].split(",")
read = pc.open_csv(path, pc.ReadOptions(column_names=names, skip_rows=1, block_size=8 << 20), None,
                   pc.ConvertOptions(column_types={n: pa.uint8() if n else pa.string() for n in names}))
a, k = np.empty((2000, 65536), np.uint8), 0
for part in read:
    for j in range(2000): a[j, k:k + part.num_rows] = part.column(j + 1).to_numpy()
    k += part.num_rows"""),
    "ctseg, first "
    "read": ("from ctseg.data.mask_csv import read_masks", "a = read_masks(path, cache=False)[1]"),
    "ctseg, cached": ("from ctseg.data.mask_csv import read_masks", "a = read_masks(path)[1]"),
}
PROGRAM = """
import json, sys, time
{imports}
path = {path!r}
def peak():
    "The largest memory of this process so far, in MB."
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))/1024
before, start, cpu = peak(), time.perf_counter(), time.process_time()
{read}
seconds, cpu, after = time.perf_counter() - start, time.process_time() - cpu, peak()
import numpy as np
same = bool((np.asarray(a).reshape(2000, -1) == np.load({truth!r}, mmap_mode="r").reshape(2000, -1)).all())
print(json.dumps(dict(seconds=seconds, processor=cpu, peak=after, imports=before, same=same)))
"""

def measure(reader, path):
    imports, read = READERS[reader]
    code = PROGRAM.format(imports=imports, read=read, path=str(path), truth=f"{folder.name}/truth.npy")
    env = {**os.environ, "CTSEG_CACHE": f"{folder.name}/cache"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    ).stdout
    return {**json.loads(out), "reader": reader, "file": Path(path).name}


# %%
runs = []
for path in (csv, f"{csv}.gz"):
    measure("ctseg, cached", path)  # fills the cache
    for _ in range(3): runs += [measure(reader, path) for reader in READERS]
folder.cleanup()
assert all(r["same"] for r in runs)
runs = pd.DataFrame(runs)

# %%
cpu = next(
    (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
    platform.processor(),
)
print(
    f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, numpy {np.__version__}, pandas "
    f"{pd.__version__}, "
    f"pyarrow {pyarrow.__version__}, ctseg {ctseg.__version__}"
)
table = runs.groupby(["file", "reader"], sort=False).agg(
    dict(seconds="min", processor="min", peak="max", imports="max")
)
base = table.xs("pandas", level="reader").reindex(table.index.get_level_values("file")).set_index(table.index)
table["times faster"] = base.seconds/table.seconds
table["part of the memory"] = table.peak/base.peak
table["the same without imports"] = (table.peak - table.imports)/(base.peak - base.imports)
table.rename(
    columns=dict(
        seconds="seconds (wall)", processor="seconds (processor)", peak="peak MB", imports="of it imports"
    )
).round(
    {
        "seconds (wall)": 3,
        "seconds (processor)": 3,
        "peak MB": 0,
        "of it imports": 0,
        "times faster": 1,
        "part of the memory": 3,
        "the same without imports": 3,
    }
)

# %%
first, cached = table.loc[("y_train.csv", "ctseg, first read")], table.loc[("y_train.csv", "ctseg, cached")]
print(
    f"first read: {first['times faster']:.1f} times faster than pandas, "
    f"with {first['part of the memory']:.3f} "
    f"of its peak memory; "
    f"cached: {cached['times faster']:.0f} times faster"
)
assert first["times faster"] >= 3 and first["part of the memory"] <= .25 and cached["times faster"] >= 50

# %% [markdown]
# The first read is several times faster than pandas, with a fraction of its memory. Arrow's reader is a fine one, but it is general: it
# splits and converts every column apart, and a table of 2000 narrow columns is the worst case for that. The cached read costs about what
# it takes to copy 131 MB from the page cache. With the gzipped file, of 3 MB instead of 269, most of the first read is unpacking; it is
# the better form to keep.
