# %% [markdown]
# # What `make demo` prints
#
# > The demo of the front page, run as a user runs it: what it says at the end, how long it takes, and its submission.

# %% [markdown]
# The front page shows a prediction and quotes the demo's last lines. Both are read from the files that this notebook writes, so they are what the command really
# does. Time is given as the processor's, not the clock's: it does not change when the machine has other work.

# %%
import csv, gzip, os, platform, resource, shutil, subprocess, sys, tempfile
from pathlib import Path

import torch

from ctseg.data import check_submission, read_challenge, read_masks
from ctseg.metrics import challenge_dice

RESULTS = Path("results")

# %%
folder = tempfile.TemporaryDirectory()
out = subprocess.run([sys.executable, "-m", "ctseg", "demo", "--out", "runs/demo", "--data", str(Path("../../data_sample").resolve())],
                     cwd=folder.name, check=True, capture_output=True, text=True, env={**os.environ, "CTSEG_CACHE": f"{folder.name}/cache"})
used = resource.getrusage(resource.RUSAGE_CHILDREN)
run = Path(folder.name)/"runs"/"demo"
said = [line for line in out.stdout.splitlines() if not line.endswith(" s in all")]  # the clock's time depends on the machine's other work
print("\n".join(said))

# %% [markdown]
# The score on the screen is the challenge's metric of the submission that was written:

# %%
test = read_challenge("../../data_sample", "test", cache=False)
check_submission(run/"submission.csv", "../../data_sample")
names, masks = read_masks(run/"submission.csv", cache=False)
dice = challenge_dice(masks, test.masks, len(test.classes))
row = {"dice": round(dice, 4), "cpu_minutes": round((used.ru_utime + used.ru_stime)/60, 1), "peak_MB": used.ru_maxrss//1024, "threads": torch.get_num_threads(),
       "python": platform.python_version(), "torch": torch.__version__}
assert f"{dice:.3f}" in out.stdout
row

# %%
with (RESULTS/"demo.csv").open("w", newline="") as f:
    table = csv.DictWriter(f, row, lineterminator="\n"); table.writeheader(); table.writerow(row)
(RESULTS/"demo.txt").write_text("\n".join(said).strip("\n") + "\n", encoding="utf-8")
with (RESULTS/"demo_submission.csv.gz").open("wb") as f, gzip.GzipFile("", "wb", 9, f, mtime=0) as z: z.write((run/"submission.csv").read_bytes())
folder.cleanup()
sorted(p.name for p in RESULTS.glob("demo*"))
