# %% [markdown]
# # Where a run comes from
#
# > A run is named by its folder, or by its repository on the Hugging Face hub; of the latter only plain data is fetched.

# %%
#| default_exp runs.source

# %%
#| export
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ctseg.core.arguments import checks_arguments
from ctseg.core.errors import InputError
from ctseg.core.json_files import read_json
from ctseg.core.paths import real_path
from ctseg.core.registry import Plugin, is_loaded
from ctseg.models.sealed import read_seal
from ctseg.runs.folder import Run
from ctseg.runs.sums import METRICS_FILE, SUMS

# %%
#| hide
import contextlib
import json
import tempfile
from unittest import mock

from fastcore.test import test_eq

# %% [markdown]
# `hf://owner/name` is a repository on the hub, `hf://owner/name@v2` a branch, tag or commit of it. A name without `hf://` is a folder, if there is one. Otherwise `owner/name` is looked for on the hub, but only if there is no folder `owner` either. So a mistyped `runs/frist` is a missing folder, and no request leaves the machine.

# %%
#| export
NAME_PART = r"(?!.*(?:\.\.|--))[A-Za-z0-9_](?:[\w.-]{0,94}\w)?"
REVISION = r"(?!.*\.\.)[\w][\w./-]{0,249}"
ON_HUB = re.compile(rf"(?P<repo>{NAME_PART}/{NAME_PART})(?:@(?P<revision>{REVISION}))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    "A repository on the hub, and which version of it."
    repo: str  # owner/name
    revision: str | None = None  # a branch, tag or commit; None: the newest

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


# %%
#| export
def hub_name(name: str | Path) -> HubName | None:
    "The repository that `name` means; None for a folder. `InputError` for hf://… that cannot be one."
    text = name.as_posix() if isinstance(name, Path) else name  # a path makes one / of two
    scheme = re.match("hf:/{1,2}", text)
    found = ON_HUB.fullmatch(text[scheme.end():] if scheme else text)
    if scheme and not found:
        expected = "expected hf://owner/name or hf://owner/name@revision"
        raise InputError(f"{text[:200]}: not the name of a repository on the hub; {expected}")
    if not found: return None
    is_folder = Path(text).exists() or Path(text).parent.exists()
    if is_folder and not scheme: return None
    return HubName(found["repo"], found["revision"])


# %%
with tempfile.TemporaryDirectory() as d:
    for text in ("hf://ada/liver", "hf://ada/liver@v2", "ada/liver", d, f"{d}/frist", "liver"):
        print("a repository" if hub_name(text) else "a folder    ", text.replace(d, "runs"))
for wrong in ("hf://../../etc", "hf://ada", "hf://ada/liver@../x"):
    try: hub_name(wrong)
    except InputError as e: print(e)

# %% [markdown]
# We fetch only these files of a repository, each by its exact name: numbers as safetensors, and JSON, CSV and Markdown. None of them is unpickled or executed. If a run needs a plugin, an error says so, and the user gives the file with `--plugin` after reading it.

# %%
#| export
WEIGHTS = "checkpoints/model.safetensors"
NEEDED = ("recipe.json", WEIGHTS)
SHARED = (*NEEDED, METRICS_FILE, SUMS, "history.csv", "timings.csv", "reliability.csv", "model_card.md")


def import_hub() -> ModuleType:
    "The package huggingface_hub; `InputError` that tells how to get it."
    try:
        import huggingface_hub
    except ImportError as e:
        remedy = "run: pip install 'ctseg[hub]'"
        raise InputError(f"huggingface_hub is not installed ({e}), the hub needs it; {remedy}") from None
    return huggingface_hub


# %%
#| export
def hub_failure(name: HubName, error: Exception) -> InputError | None:
    "What an answer of the hub means, for its user; None if there was no answer at all."
    from huggingface_hub import errors
    if isinstance(error, errors.GatedRepoError):
        remedy = "accept the terms on its page, then `hf auth login`"
        return InputError(f"{name}: its owner asks who reads it; {remedy}")
    if isinstance(error, errors.RepositoryNotFoundError):
        more = "or it is private (then `hf auth login`)"
        return InputError(f"{name}: no folder of this name, and no such repository on the hub, {more}")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{name}: the repository has no branch, tag or commit {name.revision!r}")
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{name}: not a name that the hub takes")
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return InputError(f"{name}: the hub answered {error.response.status_code}; try again later")
    return None


# %% [markdown]
# What is in the cache of `huggingface_hub` can be loaded without a network. We look up the version first, so that all files come from the same one.

# %%
#| export
Fetch = Callable[[str], str | None]  # a file's name → where it lies now; None: the repository has none

def from_network(name: HubName) -> Fetch | None:
    "How to fetch a file of a repository; None where the hub cannot be reached."
    hub = import_hub()
    try:
        info = hub.HfApi().model_info(name.repo, revision=name.revision, timeout=10)
    except Exception as e:  # the packages below it have changed, and their errors with them
        failure = hub_failure(name, e)
        if failure is None: return None
        raise failure from None
    offered = {file.rfilename for file in info.siblings}

    def fetch(file: str) -> str | None:
        if file not in offered: return None
        return hub.hf_hub_download(name.repo, file, revision=info.sha)
    return fetch


# %%
#| export
def from_cache(name: HubName) -> Fetch:
    "How to find a file of a repository in the cache."
    hub = import_hub()

    def find(file: str) -> str | None:
        path = hub.try_to_load_from_cache(name.repo, file, revision=name.revision)
        return path if isinstance(path, str) else None
    return find


# %%
#| export
def check_inside(path: Path, name: HubName) -> None:
    "`InputError` if a fetched file is a link to something outside of its repository's place in the cache."
    place = next((p for p in path.parents if p.name.startswith("models--")), path.parent)
    if not real_path(path).is_relative_to(real_path(place)):
        raise InputError(f"{name}: {path.name} in the cache is a link that leads out of it; delete {place}")


def fetch_files(name: HubName, fetch: Fetch) -> dict[str, Path]:
    "The shared files of a repository that it has, by name; `InputError` if one cannot be had."
    files = {}
    for file in SHARED:
        try:
            path = fetch(file)
        except Exception as e:  # of the client, of the HTTP library below it, or of the network
            problem = f"{file} could not be fetched ({type(e).__name__}); try again"
            raise hub_failure(name, e) or InputError(f"{name}: {problem}") from None
        if path is None: continue
        files[file] = Path(path)
        check_inside(files[file], name)
    return files


# %%
#| export
def check_fetched(spec: Any, name: HubName) -> None:
    "`InputError` unless a `recipe.json` from the hub can be used without executing or fetching anything more."
    if not isinstance(spec, dict) or not isinstance(spec.get("recipe"), dict):
        raise InputError(f"{name}: not a run of ctseg (its recipe.json is another one)")
    for given in spec.get("plugins") or []:
        plugin = Plugin(**given) if isinstance(given, dict) and given.keys() == {"name", "sha256"} else None
        if plugin and is_loaded(plugin): continue
        problem = f"needs the plugin {plugin or given}, which is code and not fetched"
        remedy = "get the file from its author, read it, and give it with --plugin"
        raise InputError(f"{name}: {problem}; {remedy}")
    model = spec["recipe"].get("model")
    network = model.get("name", "") if isinstance(model, dict) else model
    if str(network).count(":") > 1:  # timm would follow such a name to another repository
        raise InputError(f"{name}: its network {network!r} is none that ctseg builds")


# %%
#| export
def fetch_run(name: HubName) -> Path:
    "The folder in the cache with the shared files of a repository, fetched where they are missing or have changed."
    network = from_network(name)
    files = fetch_files(name, network or from_cache(name))
    missing = next((file for file in NEEDED if file not in files), None)
    if missing and network is None:
        problem = f"the hub cannot be reached, and the cache has no copy ({missing})"
        raise InputError(f"{name}: no folder of this name, {problem}")
    if missing:
        problem = "the run has no weights" if "recipe.json" in files else "not a run of ctseg"
        raise InputError(f"{name}: {problem} (no {missing} in the repository)")
    check_fetched(read_json(files["recipe.json"]), name)
    return files["recipe.json"].parent


# %% [markdown]
# `find_run` is what every command calls with the name that it was given.

# %%
#| export
@checks_arguments
def find_run(name: str | Path | Run) -> Run:
    "The run that is meant: that of a folder, or of a repository on the hub, whose files are then in the cache."
    if isinstance(name, Run): return name
    on_hub = hub_name(name)
    return Run(name) if on_hub is None else Run(fetch_run(on_hub))


# %% [markdown]
# Whoever averages runs takes each once. A run that is given twice would silently count double.

# %%
#| export
def distinct_runs(names: Iterable[str | Path | Run]) -> list[Run]:
    "The runs that are meant, see `find_run`. `InputError` for one that is given twice; a warning for a copy."
    runs: dict[Path, Run] = {}
    for run in map(find_run, names):
        real = real_path(run.folder)
        if real in runs:
            raise InputError(f"{run.folder}: this run is given twice, expected once")
        runs[real] = run
    weights: dict[str, Run] = {}
    for run in runs.values():
        seal = read_seal(run.weights) if run.weights.is_file() else None
        other = weights.setdefault(seal, run) if seal else run
        if other is not run:
            warnings.warn(f"{run.folder} has the weights of {other.folder}: one is a copy of the other")
    return list(runs.values())


# %% [markdown]
# The cache has a folder for each version. Here is one that was fetched earlier, and a machine without a network.

# %%
with tempfile.TemporaryDirectory() as d, contextlib.ExitStack() as without:
    repository = Path(d)/"models--ada--liver"
    version = repository/"snapshots"/"0123abc"
    (version/"checkpoints").mkdir(parents=True)
    (version/"recipe.json").write_text(json.dumps({"recipe": {"model": {"name": "attunet"}}}))
    (version/WEIGHTS).touch()
    (repository/"refs").mkdir()
    (repository/"refs"/"main").write_text("0123abc")
    without.enter_context(mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True))
    without.enter_context(mock.patch("huggingface_hub.constants.HF_HUB_CACHE", d))
    for name in ("hf://ada/liver", "ada/liver", "hf://ada/liver@0123abc"):
        test_eq(find_run(name).folder, version)
    for missing in ("hf://ada/liver@v9", "hf://ada/spleen"):
        try: find_run(missing)
        except InputError as e: print(e)
