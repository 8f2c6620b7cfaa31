# %% [markdown]
# # Where nnU-Net finds the trainers
#
# > `python -m ctseg.integrations.nnunet` once, and `nnUNetv2_train -tr nnUNetTrainerPartial` works.

# %%
#| default_exp integrations.nnunet_setup

# %%
#| export
import argparse
import importlib.util
import sys
from pathlib import Path

from ctseg.core.atomic import atomic_path
from ctseg.core.errors import InputError, say
from ctseg.core.paths import real_path

# %%
#| hide
import contextlib
import io
import shutil
import tempfile

from fastcore.test import test_eq, test_fail

# %% [markdown]
# nnU-Net looks for a trainer by the name of its class, in the modules of its own package and in the folders that the environment variable
# `nnUNet_extTrainer` lists. So a small file goes there. It says where the [trainers](15_nnunet_trainer.ipynb) are, and imports them only when one of
# them is asked for: whoever trains or predicts with another trainer notices nothing, even when this package is gone.

# %%
#| export
FILE = "ctseg_trainers.py"
TEXT = '''"The trainers of ctseg. Written by `python -m ctseg.integrations.nnunet`; --undo removes this file."


def __getattr__(name):
    if not name.startswith("nnUNetTrainerPartial"): raise AttributeError(name)
    from ctseg.integrations.nnunet_trainer import TRAINERS, trainer_class
    if name not in TRAINERS: raise AttributeError(name)
    return trainer_class(name)
'''

# %%
found = {}
exec(TEXT, found)
test_fail(lambda: found["__getattr__"]("nnUNetTrainerDA5"), contains="nnUNetTrainerDA5")


# %%
#| export
def trainer_folder() -> Path:
    "The folder in which nnU-Net looks first; `InputError` if nnU-Net is not installed, or has none."
    found = importlib.util.find_spec("nnunetv2")
    if found is None or not found.submodule_search_locations:
        raise InputError("nnU-Net is not installed; run: pip install 'ctseg[nnunet]'")
    folder = Path(found.submodule_search_locations[0])/"training"/"nnUNetTrainer"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, this nnU-Net is built otherwise; "
                         "give --folder, and name the folder in nnUNet_extTrainer")
    return folder


# %% [markdown]
# It is the folder in which nnU-Net looks first, so that its other varieties and what they import are not loaded.

# %%
if importlib.util.find_spec("nnunetv2") is None:
    test_fail(trainer_folder, contains="nnU-Net is not installed")


# %%
#| export
def add_trainers(folder: Path | None = None) -> Path: # None: in nnU-Net itself
    "Write the file that leads nnU-Net to the trainers; its path."
    path = (trainer_folder() if folder is None else Path(folder))/FILE
    with atomic_path(path) as part: part.write_text(TEXT, encoding="utf-8")
    return path

def remove_trainers(folder: Path | None = None) -> Path:
    "Remove that file; `InputError` if there is none."
    path = (trainer_folder() if folder is None else Path(folder))/FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file, so nothing is to be undone")
    path.unlink()
    return path


# %%
work = Path(tempfile.mkdtemp())
print(add_trainers(work).name, "added")
print(remove_trainers(work).name, "removed")
test_fail(lambda: remove_trainers(work), contains="nothing is to be undone")


# %% [markdown]
# ## From the command line

# %%
#| export
def set_up(arguments: list[str] | None = None) -> int: # exit status
    "`python -m ctseg.integrations.nnunet [--folder DIR] [--undo]`."
    parser = argparse.ArgumentParser("python -m ctseg.integrations.nnunet", description=__doc__)
    parser.add_argument("--folder", type=Path, help="write there, for nnUNet_extTrainer, not into nnU-Net")
    parser.add_argument("--undo", action="store_true", help="remove what was written")
    given = parser.parse_args(arguments)
    try:
        path = (remove_trainers if given.undo else add_trainers)(given.folder)
    except InputError as error:
        say(f"error: {error}", sys.stderr)
        return 2
    say(f"{'removed' if given.undo else 'written'}: {path}")
    if given.folder and not given.undo:
        say(f"now set nnUNet_extTrainer={real_path(given.folder)}")
    return 0


# %%
with contextlib.redirect_stdout(io.StringIO()) as output:
    status = set_up(["--folder", str(work)])
print(output.getvalue().replace(str(work), "DIR"))
test_eq(status, 0)
shutil.rmtree(work)
