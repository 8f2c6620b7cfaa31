# %% [markdown]
# # Reading the report
#
# > One page a run: where to look first, what each number means, and what to do about it.

# %% [markdown]
# ```sh
# ctseg report runs/first --data my_data          # writes runs/first/report.html
# ```
#
# The page is one file. It opens in any browser, without a network, and it can be sent by mail. It shows slices of your patients, so treat it like them.
#
# Here is the report of a small run: a body with two lungs and a heart, where annotators examined two of the three structures on each slice.
# Scroll through it; the sections below follow its order.

# %%
#| hide
import tempfile
from html import escape
from pathlib import Path

import pandas as pd
from IPython.display import display

import ctseg
from ctseg.data.toys import toy_set
from ctseg.prediction.predictor import load_predictor
from ctseg.report.facts import prediction_facts, scored_slices
from ctseg.report.page import report

slices, _ = toy_set(60, labelled=40, size=64)
recipe = ctseg.get_recipe("teacher-student").change(width=8, epochs=14, folds=4, lr=5e-3, keep=0.5)
keep = tempfile.TemporaryDirectory()
run = ctseg.fit(slices, recipe, Path(keep.name)/"toy", device="cpu", progress=False)
(run.folder/"timings.csv").unlink()  # seconds would differ whenever this page is made

# %%
#| echo: false
page = report(run.folder, slices, most=6).read_text(encoding="utf-8")
frame = (
    '<iframe title="a report" style="width: 100%; height: 40rem; border: 1px solid #8884" '
    f'srcdoc="{escape(page)}"></iframe>'
)
display({"text/html": frame}, raw=True)

# %% [markdown]
# ## The line at the top
#
# | it says | it means |
# |---|---|
# | **Dice** | the challenge's score: the mean over slices for each structure, then over structures. Only cells that annotators examined count |
# | **95 % interval** | how far the score would move with other patients. It does not contain the luck of training: another seed may fall outside |
# | **slices, groups** | how much the score rests on. Ten slices of two patients are two pieces of evidence, not ten |
# | **invented, missed** | structures drawn where there are none, and structures that are there and were not drawn. Both score 0 |
# | **silent classes** | structures that are never drawn. Look at these first |
# | **decision** | the rule that turns probabilities into labels. It was chosen on the held-out slices, so the score on them is a little too good. `--split test` scores slices that had no part in it |
#
# ## The slices
#
# Begin with the worst slices; they come first. The truth is on the left, the prediction on the right. **Striped** is what nobody can judge: the network draws a structure that
# was not examined on this slice. That is neither right nor wrong. The arrow keys flip through, and the space bar hides the overlay.
#
# ## The structures
#
# The table has one row a structure. These are the rows of the run above:

# %%
held_out = scored_slices(run, slices)
prediction = load_predictor(run.folder, "cpu").predict(held_out.images)
rows = pd.DataFrame(prediction_facts(held_out, prediction)["rows"])
rows[["name", "support", "dice", "dice_present", "absent", "invented", "missed"]].round(2)

# %% [markdown]
# `support` counts the slices where the structure is present, `absent` those where annotators looked for it in vain.
# `dice` counts an invention as 0; `dice_present` leaves inventions out. Read the two together:
#
# | you see | it means | what to try |
# |---|---|---|
# | a low Dice, and as low where present | the outline is poor | more epochs, a larger image, another network |
# | a low Dice, but high where present | it is drawn where there is nothing | a stricter rule: hold out more slices (`folds=5`), or `ctseg predict … --gate 0.5` |
# | many missed | the network hesitates | a [loss with the logarithm of the Dice](../losses/10_partial.ipynb), `rare_power=0.5` |
# | *silent* | it is never drawn | count its slices with `ctseg check`; see [when it goes wrong](when_it_goes_wrong.ipynb) |
# | *few slices* | its score rests on one or two slices | nothing can be said; annotate more |
#
# The last columns of the page are the network's own opinion: the Dice it expects, how much of the edge is uncertain, and how often it thinks that the structure is there. Where *said present*
# is far from *is present*, its probabilities cannot be taken at their word.
#
# ## How sure is a prediction?
#
# The report judges slices whose truth is known. For new slices, `ctseg predict … --confidence sure.csv` writes the network's own opinion for each slice and structure: the [Dice to expect, the chance that it is there, and the uncertain share of its edge](../prediction/55_sureness.ipynb), calibrated where the run is. `ctseg segment` writes a confidence for each structure of a scan.
#
# ## What is taken for what
#
# Each row is a true structure, each column what its pixels were called. A bright cell off the diagonal is a confusion. For paired organs a small table says how many pixels went
# to the other side; much of that mostly means that images were mirrored without exchanging the names (`mirror`).
#
# ## Training
#
# The loss should fall and the held-out Dice should rise. If the Dice still rises at the end, train longer. If it falls while the loss falls too, the network learns the training
# slices by heart: take fewer epochs, or stronger augmentation.
#
# ## Calibration
#
# A pixel with probability 0.8 should be right four times in five. Points below the diagonal are overconfident. The temperature repairs most of it: `ctseg predict --calibrated`.
#
# ## Pseudo-labels
#
# Methods with a teacher show which of its predictions they believed. Flip to *pseudo-labels kept* among the slices: if those are wrong, the student learns the mistakes. Then keep fewer of them
# (`keep`, `quota`), or ask for more certainty (`tau`, `cell_confidence`).
#
# ## Two runs
#
# `ctseg report runs/a runs/b --data my_data` writes a page that compares them: [comparing two methods fairly](comparing_two_methods.ipynb).

# %%
#| hide
keep.cleanup()
