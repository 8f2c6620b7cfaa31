# %% [markdown]
# # What `make demo` prints
#
# > The demo of the front page, run as a user runs it, with three seeds: what it says at the end, how well it draws, how long it takes.

# %% [markdown]
# **Question.** How well does the network of `make demo` draw, and how long does the demo take?
#
# **Answer.** The student's mean Dice is 0.48 on 60 test slices with seven organs, above its teacher's 0.44 in each of three seeds. One demo takes about five minutes of processor time.
#
# ## How it was measured
#
# The command was run as a user runs it, with three seeds. The front page quotes its last lines from the files that this notebook writes. Time is the processor's, not the clock's, so that other work on the machine does not change it.
#
# The settings of the demo (`ctseg.demo.PRETRAINED`, and mirrored slices) were compared on [other slices of real CT](pretrained.ipynb), of patients that were not among those trained on, with one seed each.
# These test slices were looked at for the present settings once, here. An earlier version of the demo (slices of 96 pixels, the library's decoder, a student from fresh weights) was scored on them before: teacher 0.438, student 0.481, the mean of three seeds.

# %%
import csv, gzip, os, platform, re, resource, subprocess, sys, tempfile
from pathlib import Path

import pandas as pd
from IPython.display import Image, display

from ctseg.data.challenge import check_submission, read_challenge
from ctseg.data.mask_csv import read_masks
from ctseg.demo import both_networks
from ctseg.metrics.challenge import challenge_dice
from ctseg.prediction.predictor import predict_masks
from ctseg.prediction.submission import write_submission
from ctseg.runs.folder import Run

RESULTS, SAMPLE, SEEDS = Path("results"), Path("../../data_sample"), (0, 1, 2)

# %%
folder = tempfile.TemporaryDirectory()
Path(folder.name, "data_sample").symlink_to(SAMPLE.resolve())

def run_demo(seed: int) -> tuple[list[str], float, int]: # what it printed, processor seconds, MB
    "The command, in a process of its own."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(
        [sys.executable, "-m", "ctseg", "demo", "--out", f"runs/{seed}", "--seed", str(seed)],
        cwd=folder.name,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "CTSEG_CACHE": f"{folder.name}/cache"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # the clock's time depends on the machine's other work
    lines = [line for line in out.stdout.splitlines() if not line.endswith(" s in all")]
    return lines, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_maxrss//1024

said = {seed: run_demo(seed) for seed in SEEDS}
lines = [line.replace("runs/0/", "runs/demo/") for line in said[0][0]]
print("\n".join(lines))

# %% [markdown]
# The score on the screen is the challenge's metric of the submission that was written. All seeds:

# %%
import torch

test = read_challenge(SAMPLE, "test", cache=False)
rows = []
for seed, (printed, seconds, peak) in said.items():
    run = Run(Path(folder.name)/"runs"/str(seed))
    check_submission(run/"submission.csv", SAMPLE)
    masks = {
        "teacher": predict_masks(both_networks(run)["teacher"], test.images),
        "student": read_masks(run/"submission.csv", cache=False)[1],
    }
    dice = {who: challenge_dice(pred, test.masks, len(test.classes)) for who, pred in masks.items()}
    assert f"student {dice['student']:.3f}" in "\n".join(printed)
    rows.append(
        {
            "seed": seed,
            **{who: round(d, 4) for who, d in dice.items()},
            "cpu_minutes": round(seconds/60, 1),
            "peak_MB": peak,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
    )
    if seed: continue
    for who, name in ("teacher", "demo_teacher"), ("student", "demo_submission"):
        write_submission(masks[who], test.names, Path(folder.name)/f"{name}.csv")
        with (RESULTS/f"{name}.csv.gz").open("wb") as f, gzip.GzipFile("", "wb", 9, f, mtime=0) as z:
            z.write((Path(folder.name)/f"{name}.csv").read_bytes())
table = pd.DataFrame(rows).set_index("seed")
table

# %%
print(f"mean of {len(SEEDS)} seeds: teacher {table.teacher.mean():.3f}, student {table.student.mean():.3f}")

# %%
with (RESULTS/"demo.csv").open("w", newline="") as f:
    out = csv.DictWriter(f, rows[0], lineterminator="\n")
    out.writeheader()
    out.writerows(rows)
(RESULTS/"demo.txt").write_text("\n".join(lines).strip("\n") + "\n", encoding="utf-8")

# %% [markdown]
# ## The pictures
#
# Those of the first seed, as the command wrote them.

# %%
for name in "predictions", "pseudo_labels", "curves":
    display(Image(Path(folder.name)/"runs"/"0"/f"{name}.png"))

# %%
folder.cleanup()
sorted(p.name for p in RESULTS.glob("demo*"))
