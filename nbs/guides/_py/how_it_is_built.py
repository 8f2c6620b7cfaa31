# %% [markdown]
# # How it is built
#
# > For whoever reads or changes the package: the folders, the contracts, where a method plugs in, where the numbers come from, every notebook, and the words.

# %% [markdown]
# ## From `ls` to a line
#
# Which line decides whether a pseudo-label is believed? Four steps answer it, without a search tool:
#
# 1. `ls ctseg` shows the folders of the table below. What a method adds to training is in `methods`.
# 2. `ls ctseg/methods` shows `pseudo.py` beside one file a method. Its notebook is [methods/20_pseudo](../methods/20_pseudo.ipynb).
# 3. The functions of that page are `pseudo_label` (what teachers predict), `keep_images` (whole slices) and `accept_cells` (one structure on one slice).
# 4. `keep_images` ranks the slices by their confidence and keeps the first `count`. `accept_cells` ranks the cells of each class and ends with the line asked for:
#    `present[surest, c] = of_class[surest] >= cell_confidence`. The number in it is a setting of self-training, `--set cell_confidence=0.7`.
#
# The default recipe, `ctseg`, believes single pixels and not whole cells. Its method is UniMatch, so its line is in `methods/unimatch.py`: `settled_by_softmax` ends with
# `settled = believed & (certainty >= needed)`, and `needed` comes from `--set tau=0.9`.
#
# Two more ways in:
#
# * **From `--set tau=2` to its error.** The message, `tau = 2.0: expected 0.5 to 1`, names the setting. `tau` is declared once, beside the method that reads it, in the settings class of `methods/unimatch.py`; `checked` in `core/settings.py` holds the value against the declared range.
# * **From an idea for a loss to a run with it.** [Your own method in thirty lines](your_own_method.ipynb) is a whole file to copy: a class, its setting, its name, and the command that trains with it.
#
# ## The folders
#
# `ctseg/`, `nbs/` and `tests/` have the same folders, and the sidebar of this site follows them. A folder imports only from those above it; `tests/project/test_house.py` fails otherwise.
#
# | folder | what is in it | what it knows |
# |---|---|---|
# | `core` | files and errors, settings, registry, class names, device, threads, memory, processes, figures | nothing of CT or learning |
# | `data` | slices with three states, the challenge folder, CSV of masks, splits, sampling, augmentation | slices and what is known of them |
# | `io` | volumes, NIfTI, DICOM, RTSTRUCT, DICOM SEG, OpenKBP, TotalSegmentator, several folders into one | other people's files, in and out |
# | `phantom` | a body made of formulas, with 54 structures | a whole challenge folder from one seed |
# | `losses` | the definitions ([partial](../losses/10_partial.ipynb)), the same without one-hot tensors ([fused](../losses/20_fused.ipynb)), consistency | what to learn from known cells |
# | `metrics` | the challenge's Dice, also for partial truth, surface distances, bootstrap | how to score |
# | `models` | one notebook an architecture, pretrained encoders, the zoo | image to logits |
# | `inference` | the only loop from slices to labels, engines (PyTorch, OpenVINO, ONNX Runtime), views, the decision rule, calibration | what to make of a model's output; nothing of runs |
# | `training` | randomness, averaged weights, checkpoints, the method's contract, a step, the loop | the one loop; nothing of any particular method |
# | `methods` | supervised, pseudo-labels, teacher and student, Mean Teacher, UniMatch, self-training | what a method adds to a step |
# | `runs` | the recipe, the run folder (on disk or on the hub) and its start, its card, held-out slices, the job and its phases | a recipe at work in a folder |
# | `prediction` | predictor, choice of the rule, submission, how sure it is, what a run takes over from an earlier one | runs to label maps and files |
# | `recipes` | the table of recipes, `fit` | named choices, and one call that carries one out |
# | `report` | figures of a run, pictures, the page | one page a run |
# | `integrations` | nnU-Net (trainers, data sets), MONAI and Lightning, the Hugging Face hub, ONNX | partial labels inside other people's tools |
# | top | `segmentation` (scans in, results out), `demo`, `kaggle`, `cli` | what a user starts |
#
# ## What travels through them
#
# | object | shapes | where |
# |---|---|---|
# | `SliceSet` | `images` uint8 [N, H, W] · `masks` uint8 [N, H, W], 0 where background **or unknown**, 255 where a pixel is to be ignored · `known` bool [N, C] · `names` · `groups` int [N], patients or near-duplicates · `classes` | from files to the trainer |
# | `Batch` | `image` float32 [B, K, H, W], K = 1 or a slice with its neighbours · `mask` int64 [B, H, W] · `known` bool [B, C], or [B, C, H, W] after mixing · `weight` float32 [B, 1 or C, H, W] or none · `index` int64 [B] | inside a step |
# | logits | [B, C, H, W] from networks with sigmoid outputs, [B, C+1, H, W] with softmax outputs, channel 0 the background; a list, fine to coarse, from deeply supervised ones in training | network to loss |
#
# C, H and W are never constants. One rule stands above all others: **unknown never turns into background by accident**. Every step that changes a mask says what becomes of `known`:
# [augmentation](../data/90_augment.ipynb) when it moves a structure out of the picture, [CutMix](../data/93_strong_views.ipynb) when it pastes a slice on which other structures were looked for,
# [UniMatch](../methods/50_unimatch.ipynb) when it fills gaps.
#
# ## Settings
#
# A setting is declared once, where it is used, with its default, range and meaning. `--set`, the help, the error text and `recipe.json` come from that declaration. Here are two, as the package holds them:

# %%
#| hide
import json
import re
from pathlib import Path

from IPython.display import Markdown

from ctseg.core.errors import InputError
from ctseg.core.settings import describe
from ctseg.methods.unimatch import UniMatchSettings
from ctseg.recipes.table import get_recipe
from ctseg.runs.recipe import apply_settings

# %%
for info in describe(UniMatchSettings)[:2]:
    print(f"{info.name} = {info.default!r}: {info.meaning}")

# %% [markdown]
# A [recipe](../runs/10_recipe.ipynb) is nested: method, model, loss, augmentation, schedule, data, compute, rule. A setting is reached by its name where that is unambiguous, by `group.name` always.
# A setting that the chosen method does not have is an error:

# %%
recipe = get_recipe("ctseg")
print(recipe.value("method"), recipe.value("model"), recipe.value("loss"), recipe.value("schedule.lr"))
try:
    apply_settings(recipe, ["cell_confidence=0.8"])
except InputError as error:
    print(error)


# %% [markdown]
# ## One loop, many methods
#
# A method does not copy the training loop. It is [a class](../training/50_method.ipynb) with three functions: `phases` yields one training after another and receives each averaged model; `views` says which images the network sees in a step;
# `loss` turns its logits into a number. Resuming, several processes, short memory, averaged weights and checkpoints belong to the [loop](../training/70_loop.ipynb), and every method has them.
#
# Everything random in a step is a function of (seed, phase, step). So a run that was killed and resumed ends with the same weights as one that was left alone, and a phase that has finished can be loaded instead of run.
#
# ## Plugins
#
# Methods, losses, networks and augmentations are found by name in a [registry](../core/70_registry.ipynb). `@register_method("name")` in a file of your own adds one. `--plugin FILE.py` loads that file; an installed package names its module under the entry point `ctseg.plugins`.
# The user's cache keeps a copy of the file, so predictions on the same machine find it again; nothing in a run folder is executed. [A whole example](your_own_method.ipynb).
#
# ## Where the numbers come from
#
# `python tools/bench.py TABLE --data FOLDER` trains the rows of a fixed table of recipes, settings and seeds. Of each run it keeps the Dice of every test slice and class in `nbs/benchmarks/results/TABLE/NAME-sSEED.npz`, and it repeats no run that is there. The pages below compute every table from these files,
# by the functions that REPORT.pdf uses (`paper/measured.py`), and the README is written from `nbs/index.ipynb`. No number of the README, the PDF or a table is typed by hand, and a test fails when one of them is behind. Sentences around the tables name figures too: those are checked by reading.

# %%
#| hide
def title_of(path):
    "Title and one-line description of a notebook."
    first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    return re.search(r"^# (.*)", first, re.M)[1], re.search(r"^> (.*)", first, re.M)[1]


def listed(paths):
    "A Markdown table with a link to each notebook."
    lines = []
    for path in paths:
        title, about = title_of(path)
        lines.append(f"| [{title}](../{path.relative_to('..').as_posix()}) | {about} |")
    return "\n".join(["| notebook | what it is about |", "|---|---|", *lines])


FOLDERS = """
    core data io phantom losses metrics models inference training methods runs prediction recipes report
    integrations cli
""".split()

# %%
#| echo: false
Markdown(listed(sorted(Path("../benchmarks").glob("*.ipynb"))))

# %% [markdown]
# ## Every notebook
#
# Every module is a notebook: why, a short cell of code, then what it does. In a hurry, read [the challenge folder](../data/70_challenge.ipynb), [the losses](../losses/10_partial.ipynb), [a method](../training/50_method.ipynb), [UniMatch](../methods/50_unimatch.ipynb) and [the predictor](../prediction/20_predictor.ipynb).

# %%
#| echo: false
sections = {folder: sorted(Path("..", folder).glob("*.ipynb")) for folder in FOLDERS}
sections["top"] = sorted(Path("..").glob("[0-9]*.ipynb"))
Markdown("\n\n".join(f"### {folder}\n\n{listed(paths)}" for folder, paths in sections.items()))

# %% [markdown]
# ## The words
#
# | word | means |
# |---|---|
# | **cell** | one structure on one slice; it is present, absent or unknown |
# | **known** | the structure was looked for on this slice, whether it was found or not |
# | **phase** | one training from start to end; most methods have several in a row |
# | **teacher, student** | a network whose predictions are learnt from; the one that learns from them |
# | **pseudo-label** | a teacher's prediction, used as if it were truth |
# | **held out** | annotated slices that a run does not learn from: for the learning curve, the decision rule, calibration (`folds`, `fold`). Unannotated slices of the same patients may be among those that a semi-supervised method learns from, without any truth |
# | **left out** | annotated slices beyond those that the setting `labelled` keeps; they join the unlabelled ones, and their truth is used to compare settings |
# | **out of fold** | of a prediction for a slice: by a network that did not learn from its truth |
# | **weak, strong view** | a slice turned and scaled a little; the same with contrast, noise, blur and a pasted rectangle (CutMix) |
# | **EMA, averaged model** | the exponential moving average of a network's weights; what every run returns |
# | **quota** | of the cells of a class that teachers found, the share that self-training accepts at most |
# | **gate** | in a decision rule, the least peak that a class needs to be drawn on a slice at all |
# | `cell_confidence`, `pixel_confidence` | in self-training, the least confidence of an accepted cell, and of a pixel in it |
# | `second_phase` | of UniMatch: how long the phase with all images is, as a share of the first |
# | `unlabelled_passes` | of UniMatch: that phase goes on until each unlabelled image was seen so often, up to three times the first phase |
# | **decision rule** | how probabilities become labels: threshold, least areas, expected Dice, islands, rescue, or a gate; chosen on held-out slices |
# | **expected Dice** | of a drawn structure: kept if its odds of being there exceed the class's usual Dice over the Dice to be expected of this outline |
# | **argmax** | the plainest rule: the likeliest structure, or background |
# | **silent** | a class that a network draws on no test slice |
# | **invented, missed** | cells drawn though absent; cells present and not drawn. Both score 0 |
# | **SDC** | Soft Dice Confidence, about the Dice to be expected if the probabilities are right |
# | **AURC** | area under the risk–coverage curve: 1 − Dice, averaged over all shares of slices kept; lower is better |
# | **closed share** | (method − original) / (every contour − original): how much of what full annotation would bring is had without it |
# | `log`, `log-…` | in tables: our sigmoid loss with the logarithm of the Dice (the recipe `masked-log`) |
# | `marginal-…` | in tables: the same with our softmax loss (`marginal-log`) |
# | `original-…` | recipes: the original project's loss or method. Earlier they were called `seed-…`, which had nothing to do with random seeds; those names still work |
