# %% [markdown]
# # What the rows are called
#
# > The names in the benchmarks' tables, and the recipe and settings behind each.
#
# - skip_showdoc: true

# %% [markdown]
# A row's name says where a method starts and what it adds. Tables, pictures and results files have the same names.
#
# | a name begins with | the loss |
# |---|---|
# | `original-` | the original project's: Dice only, and zeros read as background |
# | `masked`, `log` | a sigmoid for each structure; unknown cells have no loss. `log` adds the logarithm of the Dice (the recipe `masked-log`) |
# | `marginal` | a softmax over all structures; background may be any unexamined one. `marginal-log` adds the logarithm of the Dice |
# | `ce-dice` | cross-entropy and Dice, with zeros read as background |
# | `full-` | the truth of every cell, which only the phantom has |
#
# | a name ends with | the method |
# |---|---|
# | nothing | supervised: the annotated slices alone |
# | `teacher-student`, `pretrain-finetune` | [a frozen teacher labels whole slices](../methods/30_teacher_student.ipynb) |
# | `mean-teacher` | [the running average is the teacher](../methods/40_mean_teacher.ipynb) |
# | `unimatch` | [sure pixels of a weak view teach a strong view](../methods/50_unimatch.ipynb), from the first step; `warm-unimatch` only after a supervised phase |
# | `self-training` | [teachers that never saw a slice label its cells](../methods/60_self_training.ipynb) |
# | `longer` | the same with more supervised steps, as a control |
# | `nopixel`, `image`, `zeros`, `fp32` | one choice changed: [what a labelled pixel says](../losses/10_partial.ipynb), the Dice per image, zeros as background, the precision |
#
# `ctseg` is the default recipe as it was when most tables were made: `marginal-log`, then a second phase half as long with all slices. `ctseg-second-3` has a second phase three times as long as the first, which the recipe now takes by itself where one slice in twenty is annotated. `ctseg-sigmoid` is `ctseg` with `masked-log`.
#
# ## Exactly
#
# Every row with its recipe of today, and the settings in which it differs from it. Sizes and lengths that all rows of a table share are left out.

# %%
#| echo: false
import sys

from IPython.display import Markdown

sys.path.insert(0, "../../tools")
from bench import TABLES

from ctseg.recipes.table import get_recipe

def settings_beside(rows):
    "Of each row the settings that not all rows of its table have."
    shared = set.intersection(*(set(settings) for _, _, settings in rows))
    for name, recipe, settings in rows:
        own = [f"`{text}`" for text in settings if text not in shared]
        yield name, get_recipe(recipe).name, ", ".join(own)

lines = ["| table | row | recipe | settings |", "|---|---|---|---|"]
for table, rows in TABLES.items():
    for name, recipe, settings in settings_beside(rows):
        lines.append(f"| {table} | `{name}` | `{recipe}` | {settings} |")
Markdown("\n".join(lines))
