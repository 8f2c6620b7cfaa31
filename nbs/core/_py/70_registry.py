# %% [markdown]
# # Registry
#
# > Names for methods, losses, networks and augmentations, also for those in files of a user's own.

# %%
#| default_exp core.registry

# %%
#| export
import hashlib
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ctseg.core.atomic import atomic_path
from ctseg.core.cache import own_cache
from ctseg.core.errors import InputError, did_you_mean
from ctseg.core.paths import MAX_TEXT, refuse_special, unread

# %%
#| hide
import os
import tempfile

from fastcore.test import test_eq

# %% [markdown]
# A recipe is text, so it names its method, loss, network and augmentation. A registry finds the thing by its name. You can add a thing of your own in three ways: in a notebook, in a
# [file](../guides/your_own_method.ipynb) given by `--plugin`, or in an installed package.
#
# ## Installed packages
#
# A package adds its methods with two lines in its `pyproject.toml`:
#
#     [project.entry-points."ctseg.plugins"]
#     mine = "my_package.my_module"
#
# The module registers what it has when it is imported. It is imported when a name is asked for that ctseg does not know.

# %%
#| export
ENTRY_POINTS = "ctseg.plugins"
PLUGIN_MODULE = "ctseg_plugin_"  # how the modules made of plugin files are called
_imported: set[str] = set()

def load_entry_points() -> None:
    "Import the modules that installed packages name under `ctseg.plugins`, each once; a broken one is a warning."
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.value in _imported: continue
        _imported.add(point.value)
        try:
            point.load()
        except Exception as e:  # of anybody's code, for which ctseg must not fail to start
            problem = f"cannot be imported: {type(e).__name__}: {e}"
            warnings.warn(f"the plugin {point.name} ({point.value}) {problem}")


# %%
load_entry_points()
print(len(metadata.entry_points(group=ENTRY_POINTS)), "installed plugins")


# %% [markdown]
# ## A table of names
#
# A registry is a dictionary that is filled by a decorator, where the thing itself is defined. A name belongs to one thing, but that thing may be defined again.

# %%
#| export
def origin(entry: Any) -> tuple[str, str]:
    "Where an entry is defined. A cell that runs twice, or a plugin that was edited, registers the same thing again."
    thing = getattr(entry, "build", entry)
    module = getattr(thing, "__module__", "")
    if module.startswith(PLUGIN_MODULE):
        module = Path(sys.modules[module].__file__).name
    return module, getattr(thing, "__qualname__", repr(thing))

def same_thing(old: Any, new: Any) -> bool:
    "Is `new` the same thing defined again? A notebook that shows a module of a package defines what is in it again too."
    (old_module, old_name), (new_module, new_name) = origin(old), origin(new)
    return old_name == new_name and (old_module == new_module or "__main__" in (old_module, new_module))


# %%
print(origin(Path), same_thing(Path, Path), same_thing(Path, len))


# %%
#| export
class Registry:
    """What each name of one kind stands for.

    Names that are not found are looked for in installed packages, by the entry point group `ctseg.plugins`."""
    def __init__(self, kind: str): # of what: "method", "loss", …
        self.kind = kind
        self.entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        "A decorator that enters any entry under `name`; a name that is taken raises `InputError`."
        def enter(entry: Any) -> Any:
            taken = self.entries.get(name)
            if taken is not None and not same_thing(taken, entry):
                raise InputError(f"the {self.kind} {name!r} is registered already; choose another name")
            self.entries[name] = entry
            return entry
        return enter

    def get(self, name: str) -> Any:
        "The entry called `name`; an unknown name raises `InputError` with the nearest ones."
        if name not in self.entries:
            load_entry_points()
        if name not in self.entries:
            raise did_you_mean(self.kind, name, self.entries)
        return self.entries[name]

    def names(self) -> list[str]:
        "All names, in the order of their registration."
        load_entry_points()
        return list(self.entries)

    def __contains__(self, name: str) -> bool: return name in self.entries or name in self.names()
    def __iter__(self) -> Iterator[str]: return iter(self.names())


# %%
shapes = Registry("shape")

@shapes.register("disc")
def disc(): return "round"

print(shapes.names(), shapes.get("disc")())
try: shapes.get("disk")
except InputError as e: print(e)
try: shapes.register("disc")(len)
except InputError as e: print(e)


# %% [markdown]
# ## A file of your own
#
# `--plugin my_method.py` executes that file. A run remembers the file's name and hash. A copy goes to the user's own cache, so that predictions from the run find it later on the same machine.
# Nothing that lies inside a run folder is ever executed: such a folder may come from anybody.

# %%
#| export
@dataclass(frozen=True)
class Plugin:
    "A file that was executed: its name, and the hash of its contents."
    name: str
    sha256: str

    def __str__(self) -> str: return f"{self.name} (sha256 {self.sha256[:12]}…)"


# %%
print(Plugin("my_loss.py", "ab12"*16))


# %%
#| export
def kept_copy(sha256: str) -> Path | None:
    "Where the cache keeps the plugin with this hash; None where the cache cannot be believed, since it would be executed."
    folder = own_cache("plugins")
    return folder and folder/f"{sha256}.py"

def keep_copy(plugin: Plugin, source: bytes) -> None:
    "Copy a plugin that the user gave to the user's cache, in a folder that nobody else can write to."
    path = kept_copy(plugin.sha256)
    if path and path.exists(): return
    problem: Exception | str = "see above"
    try:
        if path:
            with atomic_path(path, private=True) as tmp: tmp.write_bytes(source)
            return
    except (OSError, InputError) as e:
        problem = e
    remedy = "give it again with --plugin to predict"
    warnings.warn(f"no copy of the plugin {plugin.name} is kept ({problem}): {remedy}")


# %%
os.environ["CTSEG_CACHE"] = tempfile.mkdtemp()  # leave the reader's own cache alone
keep_copy(Plugin("x.py", "ab12"*16), b"answer = 42")
print(kept_copy("ab12"*16).read_text())

# %%
#| export
_loaded: dict[str, Plugin] = {}  # by hash

def load_plugin(path: str | Path) -> Plugin:
    "Execute a user's Python file, once, and keep a copy in the user's cache; `InputError` if it is missing or fails."
    path = Path(path)
    refuse_special(path, MAX_TEXT)
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"plugin {path}: no such file") from None
    except OSError as e:
        raise unread(f"plugin {path}", e) from None
    plugin = Plugin(path.name, hashlib.sha256(source).hexdigest())
    if plugin.sha256 in _loaded: return plugin
    execute(source, path)
    _loaded[plugin.sha256] = plugin
    keep_copy(plugin, source)
    return plugin


# %%
#| export
def execute(source: bytes, path: Path) -> types.ModuleType:
    "Run the source of a plugin as a module; an error in it becomes an `InputError` of one line."
    module = types.ModuleType(PLUGIN_MODULE + hashlib.sha256(source).hexdigest())
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and type hints look their module up
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except SyntaxError as e:
        raise InputError(f"plugin {path}, line {e.lineno}: {e.msg}") from e
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # also SystemExit: a plugin that ends is one that fails
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        kind = "" if isinstance(e, InputError) else f"{type(e).__name__}: "
        raise InputError(f"plugin {path}, line {lines[-1] if lines else 1}: {kind}{e}") from e
    return module


# %%
folder = Path(tempfile.mkdtemp())
(folder/"my_plugin.py").write_text("answer = 42\n")
print(load_plugin(folder/"my_plugin.py"))
(folder/"broken.py").write_text("import math\nmath.cosine(0)\n")
for wrong in ("broken.py", "missing.py"):
    try: load_plugin(folder/wrong)
    except InputError as e: print(str(e).replace(str(folder), "…"))


# %%
#| export
def require_plugin(plugin: Plugin, run: str = "this run") -> None:
    "Make sure that a plugin has been executed; takes the copy in the cache if need be, whose hash is checked."
    if plugin.sha256 in _loaded: return
    if any(given.name == plugin.name for given in _loaded.values()):
        warnings.warn(f"{run} was made with another version of the plugin {plugin}")
        return
    path = kept_copy(plugin.sha256)
    source = path.read_bytes() if path and path.is_file() else b""
    if hashlib.sha256(source).hexdigest() != plugin.sha256:
        raise InputError(f"{run} needs the plugin {plugin}; give it with --plugin")
    execute(source, path)
    _loaded[plugin.sha256] = plugin


# %%
require_plugin(load_plugin(folder/"my_plugin.py"))
test_eq(kept_copy(load_plugin(folder/"my_plugin.py").sha256).read_text(), "answer = 42\n")
try: require_plugin(Plugin("my_loss.py", "0"*64), "runs/first")
except InputError as e: print(e)


# %% [markdown]
# Which plugins a run needs can be told from what it uses.

# %%
#| export
def is_loaded(plugin: Plugin) -> bool:
    "Has this plugin, or another version of it, been executed already?"
    return plugin.sha256 in _loaded or any(given.name == plugin.name for given in _loaded.values())


# %%
is_loaded(Plugin("never_given.py", "0"*64))


# %%
#| export
def plugins_of(entries: Iterable[Any]) -> list[Plugin]:
    "The plugins that registered any of these entries."
    modules = [getattr(getattr(entry, "build", entry), "__module__", "") for entry in entries]
    hashes = [module.removeprefix(PLUGIN_MODULE) for module in modules if module.startswith(PLUGIN_MODULE)]
    return [_loaded[sha256] for sha256 in dict.fromkeys(hashes)]


# %%
(folder/"my_method.py").write_text("""
from ctseg.training.method import Method, register_method

@register_method("mine")
class Mine(Method):
    "Supervised learning by another name."
""")
load_plugin(folder/"my_method.py")
from ctseg.training.method import METHODS
print(METHODS.get("mine").__doc__, [p.name for p in plugins_of([METHODS.get("mine"), disc])])
