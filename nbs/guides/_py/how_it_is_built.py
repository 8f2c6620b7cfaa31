# %% [markdown]
# # How it is built
#
# > For whoever changes the package: the layers, the three objects that travel through them, where a method plugs in, where the numbers come from, and the words.

# %% [markdown]
# ## The layers
#
# A module imports only from those above it. So each can be read, tested and replaced without those below.
#
# | layer | modules | what they know |
# |---|---|---|
# | ground | [anatomy](../00_anatomy.ipynb), [files](../02_files.ipynb), [device](../05_device.ipynb) | class names and mirror pairs; files that are never half-written; which card, which precision |
# | data | [data](../10_data.ipynb), [phantom](../12_phantom.ipynb), [volumes](../14_volumes.ipynb), [dicom](../15_dicom.ipynb), [augment](../16_augment.ipynb), [datasets](../18_datasets.ipynb) | slices with their three states, in and out |
# | what is optimised | [losses](../20_losses.ipynb), [metrics](../22_metrics.ipynb) | what to learn from known cells; how to score |
# | networks | [base](../28_base.ipynb), one notebook an architecture, [zoo](../39_zoo.ipynb), [parallel](../38_parallel.ipynb) | image to logits; several processes as one |
# | training | [train](../40_train.ipynb), [pseudo](../50_pseudo.ipynb), the five methods | the one loop, the run folder, what teachers say |
# | use | [predict](../60_predict.ipynb), [calibrate](../62_calibrate.ipynb), [report](../64_report.ipynb), [recipes](../70_recipes.ipynb), [demo](../75_demo.ipynb), [command line](../80_cli.ipynb), [Kaggle](../85_kaggle.ipynb) | runs to label maps, files and pages |
#
# ## What travels through them
#
# | object | shapes | where |
# |---|---|---|
# | `SliceSet` | `images` uint8 [N, H, W] · `masks` uint8 [N, H, W], 0 where background **or unknown** · `known` bool [N, C] · `names` · `groups` int [N], patients or near-duplicates · `classes` | from files to the trainer |
# | `Batch` | `image` float32 [B, 1, H, W] · `mask` int64 [B, H, W] · `known` bool [B, C], or [B, C, H, W] after mixing · `weight` float32 [B, 1 or C, H, W] or none · `index` int64 [B] | inside a step |
# | logits | [B, C, H, W] from networks with sigmoid outputs, [B, C+1, H, W] with softmax outputs, channel 0 the background; a list, fine to coarse, from deeply supervised ones in training | network to loss |
#
# C, H and W are never constants. And one rule stands above all others: **unknown never turns into background by accident**. Whoever adds a step that changes a mask must say what becomes of `known`: [augmentation](../16_augment.ipynb) does when it moves a structure out of the picture, [CutMix](../16_augment.ipynb) when it pastes a slice on which other
# structures were looked for, [UniMatch](../57_unimatch.ipynb) when it fills gaps.
#
# ## One loop, many methods
#
# A method does not copy the training loop. It states what it adds to a step, as [two functions](../40_train.ipynb): `views` says which images the network shall see, `loss` what is made of its answers. A *script* then puts phases in a row; that of teacher and student is ten lines long. Cutting and resuming, several cards, short memory, steps without a finite loss,
# averaged weights and checkpoints are the loop's business, and every method has them.
#
# Everything random in a step is a function of (seed, phase, step). That is why a run that was killed and resumed ends with the same weights as one that was left alone, and why a phase that has finished can be loaded instead of run.
#
# ## Where the numbers come from
#
# `python tools/bench.py TABLE --data FOLDER` trains the rows of a fixed table of recipes, settings and seeds, and keeps of each run the Dice of every test slice and class in `nbs/benchmarks/results/TABLE/NAME-sSEED.npz`. A run that is there is not repeated. The pages below compute every table from these files, by the functions that REPORT.pdf uses
# (`report/measured.py`), and the README is written from `nbs/index.ipynb`. So no published number is typed by hand, and a test fails when one is behind.

# %%
#| hide
import json
from pathlib import Path

import pandas as pd


# %%
#| echo: false
def told(path):
    title, *rest = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).splitlines()
    return {"page": f'<a href="../benchmarks/{path.stem}.html">{title.removeprefix("# ").replace("`", "")}</a>', "what it asks": next(line[2:] for line in rest if line.startswith("> "))}

pd.set_option("display.max_colwidth", None)
pd.DataFrame([told(p) for p in sorted(Path("../benchmarks").glob("*.ipynb"))]).style.hide(axis="index").set_properties(**{"text-align": "left"})

# %% [markdown]
# ## The words
#
# | word | means |
# |---|---|
# | **cell** | one structure on one slice; it is present, absent or unknown |
# | **known** | the structure was looked for on this slice, whether it was found or not |
# | **phase** | one training from start to end; most methods have several in a row |
# | **teacher, student** | a network whose answers are learnt from; the one that learns from them |
# | **pseudo-label** | a teacher's answer, used as if it were truth |
# | **held out** | annotated slices that a run does not learn from: for the learning curve, the decision rule, calibration (`folds`, `fold`). Unannotated slices of the same patients may be among those that a semi-supervised method learns from, without any truth |
# | **left out** | annotated slices beyond those that the setting `labelled` keeps; they join the unlabelled ones, and their truth is used to compare settings |
# | **out of fold** | said of an answer about a slice by a network that did not learn from its truth |
# | **weak, strong view** | a slice turned and scaled a little; the same with contrast, noise, blur and a pasted rectangle (CutMix) |
# | **EMA, averaged model** | the exponential moving average of a network's weights; what every run returns |
# | **quota** | of the cells of a class that teachers found, the share that self-training accepts at most |
# | **gate** | in self-training the least confidence of an accepted cell; in a decision rule the least peak that a class needs to be drawn on a slice at all |
# | **decision rule** | how probabilities become labels: threshold, expected Dice, islands, rescue, or a gate; chosen on held-out slices |
# | **expected Dice** | of a drawn structure: kept if its odds of being there exceed the class's usual Dice over the Dice to be expected of this outline |
# | **argmax** | the plainest rule: the likeliest structure, or background |
# | **silent** | a class that a network draws on no test slice |
# | **invented, missed** | cells drawn though absent; cells present and not drawn. Both score 0 |
# | **SDC** | Soft Dice Confidence, about the Dice to be expected if the probabilities are right |
# | **AURC** | area under the risk–coverage curve: 1 − Dice, averaged over all shares of slices kept; lower is better |
# | **closed share** | (method − original) / (every contour − original): how much of what full annotation would bring is had without it |
# | `log`, `log-…` | in tables: our sigmoid loss with the logarithm of the Dice (the recipe `masked-log`) |
# | `marginal-…` | in tables: the same with our softmax loss (`marginal-log`) |
# | `seed-…` | the original project's loss or method; nothing to do with random seeds |
