# %% [markdown]
# # Your own method in thirty lines
#
# > A training method, a loss or a network in a file of your own, used by name and found again by predictions.
#

# %%
#| hide
import os
import subprocess
import sys
import tempfile
from pathlib import Path

home, keep = os.getcwd(), tempfile.TemporaryDirectory()
os.chdir(keep.name)
os.environ["CTSEG_CACHE"] = str(Path(keep.name)/"cache")

def show(text):
    "Print without the name of the temporary folder."
    print(text.replace(keep.name + os.sep, "").strip())


# %% [markdown]
# A method says three things: which phases are trained, what the network sees in a step, and the loss of its answers. The loop, checkpoints, several GPUs, resuming and prediction are the package's business. Here is entropy minimisation ([Grandvalet & Bengio 2004](https://papers.nips.cc/paper/2740)): on images without annotation the network is asked to make up its mind.

# %%

from pathlib import Path
Path("my_method.py").write_text('''"Entropy minimisation: be certain about images without annotation."
from ctseg.core.settings import Settings, setting
from ctseg.training.method import Method, Phase, register_method


class EntropySettings(Settings):
    "Of entropy minimisation."
    weight: float = setting(0.1, "weight of the entropy on images without annotation", low=0)


@register_method("entropy")
class EntropyMinimisation(Method):
    "Supervised learning, and low entropy on unlabelled images (Grandvalet & Bengio 2004)."
    Settings = EntropySettings

    def phases(self, job):
        return (yield Phase("entropy", job.labelled, method=self, extra=job.unlabelled))

    def views(self, ctx, labelled, extra):
        return {"labelled": labelled} if extra is None else {"labelled": labelled, "unlabelled": extra}

    def loss(self, ctx, views):
        logits = ctx.student(*views.values())
        loss = ctx.loss(logits[0], views["labelled"])
        if len(logits) == 1: return loss
        p = ctx.loss.probabilities(logits[1]).clamp(1e-6, 1 - 1e-6)
        entropy = -(p*p.log() + (1 - p)*(1 - p).log()).mean((1, 2, 3))
        return loss + self.settings.weight*ctx.loss.gather(entropy).mean()
''')
print(len(Path("my_method.py").read_text().splitlines()), "lines")

# %% [markdown]
# `--plugin` executes the file, and `--set method=entropy` chooses what it registered. Settings are checked, and told by `ctseg recipes`, because they are declared.

# %%
#| hide
from ctseg.data.challenge import write_challenge
from ctseg.data.toys import toy_set

toys, truth = toy_set(60, 40, size=32)
write_challenge(toys, "toys", "train")

def run(command):
    "Run a command line as a reader would, and print what it prints."
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": home and str(Path(home).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    show("$ " + command)
    show(done.stdout + "\n".join(line for line in done.stderr.splitlines() if line.startswith("ctseg:")))


# %%
run(
    "ctseg fit toys --plugin my_method.py --recipe marginal-log --set method=entropy --set weight=0.02 --set "
    "epochs=40 --set width=8 --set folds=4 --set lr=0.005 --set ema=0.9 --out runs/mine --device cpu"
)
run("ctseg fit toys --plugin my_method.py --set method=entropy --set weight=-1 --out runs/wrong --device cpu")

# %% [markdown]
# The run remembers the plugin by its name and hash. Predictions and reports find a copy in your own cache, so they need no `--plugin` on this machine. On another machine one line asks for the file: nothing inside a run folder is ever executed.

# %%
run("ctseg predict runs/mine --images toys/train-images --out submission.csv --device cpu")
run("ctseg report runs/mine --device cpu")

os.environ["CTSEG_CACHE"] = str(Path(keep.name)/"another machine")
run("ctseg predict runs/mine --images toys/train-images --out other.csv --device cpu")
run("ctseg predict runs/mine --plugin my_method.py --images toys/train-images --out other.csv --device cpu")

# %% [markdown]
# From Python, load the file, or just define the class: `fit` takes the recipe either way.

# %%
from ctseg.core.registry import load_plugin
from ctseg.core.settings import describe
from ctseg.recipes.table import get_recipe
from ctseg.training.method import METHODS

load_plugin("my_method.py")
recipe = get_recipe("marginal-log").change(method="entropy", weight=0.2)
print(recipe.method, describe(METHODS.get("entropy").Settings)[0].meaning, sep="\n")

# %% [markdown]
# ## A loss, a network, an augmentation
#
# They work the same way. `register_loss` takes the settings from the constructor, `register_model` a class or function of `(in_chans, out_chans)`, and `register_augmentation` a function of `(batch, generator, classes)`.
#
#     from ctseg.losses.fused import MarginalSoftmaxLoss
#     from ctseg.losses.registry import register_loss
#
#     @register_loss("quiet")
#     class QuietLoss(MarginalSoftmaxLoss):
#         def __init__(self, volume: float = 0.5):
#             super().__init__()
#             self.volume = volume
#
#         def forward(self, logits, mask, known, weight=None):
#             return self.volume*super().forward(logits, mask, known, weight)
#
# `--plugin my_loss.py --set loss=quiet --set volume=0.3` uses it. A package that is installed with pip needs no `--plugin`: [two lines in its `pyproject.toml`](../core/70_registry.ipynb) name the module.

# %%
#| hide
os.chdir(home)
keep.cleanup()
