# %% [markdown]
# # Hugging Face hub
#
# > A finished run as a repository on the hub, and what stays at home.

# %%
#| default_exp integrations.hub

# %%
#| export
import json
from pathlib import Path
from typing import Any

from ctseg.core.arguments import checks_arguments
from ctseg.core.errors import InputError
from ctseg.core.json_files import json_checksum, read_json
from ctseg.core.paths import real_path
from ctseg.models.base import read_weights
from ctseg.runs.card import write_card
from ctseg.runs.folder import Run, check_begun
from ctseg.runs.source import SHARED, HubName, find_run, hub_failure, hub_name, import_hub
from ctseg.runs.sums import SUMMED, SUMS, check_sum, sums_of

# %%
#| hide
import tempfile
from types import SimpleNamespace

from fastcore.test import test_eq

from ctseg.data.toys import toy_set
from ctseg.recipes.fit import fit
from ctseg.recipes.table import get_recipe


# %% [markdown]
# Two lines share a network, and whoever has the name can use it:
#
# ```python
# ctseg.push_to_hub("runs/first", "ada/liver")             # private, until you say private=False
# model = ctseg.load("hf://ada/liver")                      # or hf://ada/liver@v2: a branch, tag or commit
# ```
#
# What goes up is what [loading reads](../runs/22_source.ipynb): the weights that predict, as safetensors, and the run's JSON, CSV and Markdown files. Optimiser states, checkpoints of phases, pseudo-labels (they name images), pictures and the report page (it shows slices) stay at home. The card becomes the repository's front page.

# %%
#| export
def shared_recipe(run: Run) -> bytes:
    "The `recipe.json` of a run without the folders of this machine: of every path only the name."
    def without_folders(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_folders(v) for k, v in value.items()}
        if isinstance(value, list): return [without_folders(v) for v in value]
        is_path = isinstance(value, str) and (Path(value).is_absolute() or "\\" in value)
        return value.replace("\\", "/").rpartition("/")[2] if is_path else value
    spec = without_folders(read_json(run/"recipe.json"))
    return (json.dumps(spec, indent=1) + "\n").encode()


# %%
#| export
def shared_sums(run: Run, files: dict[str, bytes | str]) -> bytes:
    "The `checksums.json` of these files, of which `recipe.json` is another than that of the run."
    sums = sums_of(run.folder, [name for name in SUMMED if name in files])
    sums["recipe.json"] = json_checksum(json.loads(files["recipe.json"]))
    return (json.dumps(sums, indent=1) + "\n").encode()

def shared_files(run: Run) -> dict[str, bytes | str]:
    "What goes up, by its place in the repository: contents, or the path of a file."
    files: dict[str, bytes | str] = {"recipe.json": shared_recipe(run)}
    for name in SHARED:
        path = run/name
        if name in ("recipe.json", SUMS) or not path.exists(): continue
        if not real_path(path).is_relative_to(real_path(run.folder)):
            raise InputError(f"{path}: a link to something outside of the run; copy the file itself into it")
        files[name] = str(path)
    files[SUMS] = shared_sums(run, files)
    return files | {"README.md": files["model_card.md"]}


# %%
#| export
def check_shareable(run: Run) -> None:
    "`InputError` unless the run is whole: finished, with weights that can be read."
    check_begun(run)
    if not run.finished:
        raise InputError(f"{run.folder}: not finished; continue it with `ctseg fit … --resume`")
    read_weights(run.weights)
    for name in SHARED:
        if (run/name).exists(): check_sum(run/name, run.folder)


def repository(name: str) -> str:
    "`owner/name` of a name with or without hf://; `InputError` for another form, or for a version."
    on_hub = hub_name(name if name.startswith("hf:") else f"hf://{name}")
    if on_hub is None or on_hub.revision:
        raise InputError(f"{name}: expected owner/name; a version cannot be chosen when sharing")
    return on_hub.repo


# %%
print(repository("ada/liver"), repository("hf://ada/liver"))
try: repository("ada/liver@v2")
except InputError as e: print(e)


# %%
#| export
def push_failure(name: HubName, error: Exception) -> InputError:
    "Why a run could not be put on the hub, in one line."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
        return InputError(f"{name}: you may not write there; log in as its owner with `hf auth login`")
    reason = str(error).partition("\n")[0]
    unreachable = InputError(f"{name}: the hub cannot be reached ({type(error).__name__}: {reason})")
    return hub_failure(name, error) or unreachable


# %%
print(push_failure(HubName("ada/liver"), ConnectionError("no route")))


# %%
#| export
@checks_arguments
def push_to_hub(
    run: Run | str | Path, # a finished run
    repo_id: str, # owner/name
    private: bool = True, # of a repository that is new: only its owner sees it
    message: str = "", # of the commit; empty: a plain one
    api: Any = None, # stands for `huggingface_hub.HfApi()`, for another endpoint or token
) -> str: # the address of the commit
    "Put a finished run on the hub, in one commit; `InputError` where that is impossible."
    run, repo = find_run(run), repository(repo_id)
    check_shareable(run)
    if not (run/"model_card.md").exists():  # a run of an older ctseg
        write_card(run)
    hub = import_hub()
    operations = [hub.CommitOperationAdd(place, content) for place, content in shared_files(run).items()]
    api = hub.HfApi() if api is None else api
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message=message or "A run of ctseg")
    except Exception as e:  # of the client, of the HTTP library below it, or of the network
        raise push_failure(HubName(repo), e) from e
    return str(getattr(commit, "commit_url", commit))


# %% [markdown]
# Here a stand-in takes the place of the hub and shows what it is given.

# %%
def created(repo, **how): print("repository", repo, how)

def committed(repo, operations, commit_message):
    for operation in operations: print("  ", operation.path_in_repo)
    return "committed"

with tempfile.TemporaryDirectory() as d:
    quick = get_recipe("masked").change(width=4, epochs=1, folds=4)
    run = fit(toy_set(16, 12)[0], quick, Path(d)/"run", device="cpu", progress=False)
    stand_in = SimpleNamespace(create_repo=created, create_commit=committed)
    test_eq(push_to_hub(run, "ada/liver", api=stand_in), "committed")
    left = sorted(str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file())
    print("at home only:", [name for name in left if name not in SHARED])
