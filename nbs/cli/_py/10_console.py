# %% [markdown]
# # The console
#
# > What every command shares: the application, its threads, how facts are printed and how mistakes end.
#
# - skip_showdoc: true

# %%
#| default_exp cli.console

# %%
#| export
import codecs
import contextlib
import io
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from ctseg.core.errors import InputError, printable
from ctseg.core.json_files import read_json
from ctseg.core.loading import collector_rests
from ctseg.core.threads import set_threads
from ctseg.training.deadline import hear_end

# %%
#| hide
import signal
from types import SimpleNamespace

from fastcore.test import test_eq


# %% [markdown]
# The pages of this folder define the command `ctseg`. A command only reads its options and calls a function, so a notebook can do the same with that function. To see how a
# command is used, read the [guide to the command line](../guides/command_line.ipynb); to add a command, begin here.
#
# Two rules hold for all commands. A user's mistake is **one line on standard error and exit status 2**. Results go to standard output in a form that reads well and
# parses easily.
#
# Heavy imports wait until a command needs them, so `ctseg --help` answers at once. Its list of commands shows whole sentences, where typer
# would cut them at the end of the line. It follows the way of the data: make a folder, train, predict, score, go on. The help of a command ends
# with an example to copy.

# %%
#| export
class WholeHelp(TyperGroup):
    "A group of commands whose help shows the whole first paragraph of each, in the order of `ORDER`."
    ORDER = """
        demo import check merge store phantom fit recipes models predict segment evaluate report suggest
        export push doctor
    """.split()

    def list_commands(self, ctx) -> list[str]:
        "The names of the commands; one that `ORDER` does not have comes last."
        place = {name: i for i, name in enumerate(self.ORDER)}
        return sorted(super().list_commands(ctx), key=lambda name: place.get(name, len(place)))

    def format_commands(self, ctx, formatter) -> None:
        "Write the list of commands; a long text goes on in the next line."
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        first = {name: (c.help or "").split("\n\n")[0] for name, c in commands.items() if not c.hidden}
        rows = [(name, " ".join(text.split())) for name, text in first.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


# %% [markdown]
# An option that takes one value is given once. Given twice, one of the two would be lost without a word: `--teacher A --teacher B` would
# learn from B alone. So a second one is refused, whatever the option and whether the two agree. Where several values can be given, each
# is another one: in `ctseg predict A B A` the run A would count twice in the average. A file or a folder is the same however it is written.

# %%
#| export
UsageError = typer.BadParameter.__base__  # typer brings a click of its own, older ones use the package


def first_repeated(values: Iterable) -> str:
    "The first of several values that is there before, as a text or as the same file or folder; else empty."
    seen = set()
    for text in map(str, values):
        same = os.path.realpath(text) if os.path.exists(text) else text
        if same in seen: return text
        seen.add(same)
    return ""


# %%
test_eq(first_repeated(["a", "b"]), "")
test_eq(first_repeated([".", "b", f"../{Path.cwd().name}"]), f"../{Path.cwd().name}")


# %%
#| export
def _is_empty(value) -> bool:
    "Is a value of the command line, or one of several, the empty text? As a path it would be the folder at hand."
    return "" in value if isinstance(value, (list, tuple)) else value == ""


# %%
print(_is_empty(""), _is_empty(["a", ""]), _is_empty("a"), _is_empty(None))


# %%
#| export
class OnceCommand(TyperCommand):
    """A command that refuses what is given twice: an option of one value, or one value of several.

    It refuses an empty value too. Its `epilog` is an example, which the help shows as it is typed.
    """

    def format_epilog(self, ctx, formatter) -> None:
        "Write the example; its lines are not filled."
        if not self.epilog:
            return
        with formatter.section("Example"):
            for line in self.epilog.splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        "The arguments that are left over; `UsageError` for what is given twice, or is empty."
        values, _, given = self.make_parser(ctx).parse_args(args=list(args))
        empty = [param for param in given if _is_empty(values[param.name])]
        if empty and not ctx.resilient_parsing:
            name = empty[0].opts[0]
            raise UsageError(f"{name} is given an empty value; is a variable of the shell not set?", ctx)
        once = [option for option in given if option.param_type_name == "option" and not option.multiple]
        twice = [option.opts[0] for i, option in enumerate(once) if option in once[:i]]
        several = [value for value in values.values() if isinstance(value, (list, tuple))]
        twice += filter(None, map(first_repeated, several))
        if twice and not ctx.resilient_parsing:  # which completes what is being typed
            raise UsageError(f"{twice[0]} is given twice, expected once", ctx)
        return super().parse_args(ctx, args)


# %%
print(first_repeated(["runs/a", "runs/b", "runs/a"]), "would be refused: it is given twice")


# %%
#| export
class Commands(typer.Typer):
    "An application whose commands are `OnceCommand`s."

    def command(self, name: str | None = None, **options) -> Callable:
        "Enter a command, as typer does."
        return super().command(name, **{"cls": OnceCommand} | options)


# %%
#| export
app = Commands(
    name="ctseg",
    cls=WholeHelp,
    help="Learn to segment CT slices from partly labelled and unlabelled images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
SPEAKS = os.environ.get("RANK", "0") == "0"  # of several processes the first one; torchrun sets the variable
# with torch; `fit` chooses its threads itself, since it may have to continue as it began
COMPUTES = ("predict", "segment", "report", "models", "doctor", "demo")

# %%
print(f"{app.info.name}: {app.info.help}")

# %%
example = Commands()

@example.command()
def train(teacher: str = "", plugin: list[str] = []):
    print(teacher, plugin)

example("--teacher A --plugin a.py --plugin b.py".split(), standalone_mode=False)
for wrong in ("--teacher A --teacher=B", "--plugin a.py --plugin a.py"):
    try: example(wrong.split(), standalone_mode=False)
    except UsageError as e: print(e.format_message())


# %% [markdown]
# ## Threads
#
# The [number of threads](../core/48_threads.ipynb) must be chosen before torch is imported. A run that is continued keeps the number it was started
# with, because another number changes the rounding.

# %%
#| export
def choose_threads(run: Path | None = None) -> None:
    "Choose the number of threads, before torch is loaded; a `run` that is continued keeps its own."
    if "torch" in sys.modules:
        return
    spec = read_json(run/"recipe.json") if run and os.path.lexists(run/"recipe.json") else {}
    number = spec.get("threads") if isinstance(spec, dict) else None
    valid = type(number) is int and 0 < number <= 4096
    set_threads(number=number if valid else None)


# %%
import torch  # once it is loaded, nothing is changed
before = torch.get_num_threads()
choose_threads()
print("unchanged:", torch.get_num_threads() == before)
test_eq(torch.get_num_threads(), before)


# %% [markdown]
# Python's [collector rests](../core/47_loading.ipynb) while a command loads PyTorch and what needs it.

# %%
#| export
def loading() -> contextlib.AbstractContextManager[None]:
    "The block in which a command imports its modules. A process in which torch is loaded already, such as a notebook, stays as it is."
    return contextlib.nullcontext() if "torch" in sys.modules else collector_rests(freeze=True)


# %%
import gc
with loading():
    print("the collector works:", gc.isenabled())  # torch is loaded


# %%
#| export
def show_version(asked: bool) -> None:
    "Print the version and stop, if asked."
    if not asked:
        return
    from importlib.metadata import version
    print(f"ctseg {version('ctseg')}")
    raise typer.Exit()


VERSION = typer.Option("--version", callback=show_version, is_eager=True, help="show the version and stop")

@app.callback()
def before_commands(context: typer.Context, version: Annotated[bool, VERSION] = False) -> None:
    "Learn to segment CT slices from partly labelled and unlabelled images."
    if context.invoked_subcommand in COMPUTES:
        choose_threads()


# %%
show_version(False)
with contextlib.suppress(typer.Exit): show_version(True)


# %% [markdown]
# ## Facts for people
#
# A command ends by printing its facts: a line each, numbers with four decimals, nested facts indented.

# %%
#| export
def shown(value) -> str:
    "A value as people read it."
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    return f"{value:.4f}" if isinstance(value, float) else printable(str(value))


def print_facts(facts: dict, indent: str = "") -> None:
    "Print a line a fact; nested facts, and those of each item of a list, are indented."
    for key, value in facts.items():
        name = printable(str(key))  # of a file's content, as values are
        items = isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)
        nested = {f"{name} {i}": x for i, x in enumerate(value)} if items else {}
        if isinstance(value, dict):
            nested = {name: value}
        for title, inner in nested.items():
            print(f"{indent}{title}:")
            print_facts(inner, indent + "  ")
        if not nested:
            print(f"{indent}{name}: {shown(value)}")


# %%
print_facts(
    {
        "images": 60,
        "dice": .51234,
        "silent": [],
        "interval": [.49, .53],
        "calibration": {"temperature": 1.2},
        "volume": [{"ml": 3.}],
    }
)

# %% [markdown]
# ## Terminals with few letters
#
# Not every terminal can write every letter: a pipe on Windows mostly knows 250, a plain C locale 128. A missing letter must not end a command that has just trained for
# hours. So we write the nearest letters instead.

# %%
#| export
NEAREST = {"…": "...", "→": "->", "×": "x", "−": "-", "–": "-", "—": "-", "≥": ">=", "≤": "<=", "·": "*",
           "±": "+-", "“": '"', "”": '"', "‘": "'", "’": "'", "µ": "u", "°": " degrees"}

def nearest_letters(error: UnicodeEncodeError) -> tuple[str, int]:
    "What to write for letters that a stream does not have, and where to go on: an error handler for codecs."
    near = []
    for letter in error.object[error.start:error.end]:
        base = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
        near.append(NEAREST.get(letter) or base or "?")
    return "".join(near), error.end


def write_any_letter() -> None:
    "Make standard output and standard error take every letter, whatever their encoding is."
    codecs.register_error("ctseg.nearest", nearest_letters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ctseg.nearest")


# %%
codecs.register_error("ctseg.nearest", nearest_letters)
for encoding in ("ascii", "cp1252"):
    print(encoding, "Größe 64×64 → 3 ml², …".encode(encoding, "ctseg.nearest"))


# %% [markdown]
# ## Mistakes
#
# A mistake ends in one line that says how to mend it. If memory runs out, the line names the option that needs less.

# %%
#| export
def memory_errors() -> contextlib.AbstractContextManager:
    "Turn an out-of-memory error inside the block into an `InputError` with a remedy."
    from ctseg.training.memory import memory_errors
    return memory_errors("out of memory; take a smaller --batch-size, or --device cpu")


# %%
def too_much():
    with memory_errors(): raise MemoryError

try: too_much()
except InputError as e: print(e)
else: raise AssertionError("no refusal")


# %% [markdown]
# A misspelt option is a mistake like any other, so typer's own three lines become one.

# %%
#| export
def value_of(option: str, words: list[str]) -> str:
    "The word after `option` (or after its =) on the command line; VALUE if there is none."
    for word, after in zip(words, [*words[1:], ""]):
        if word == option and after and not after.startswith("--"):
            return after
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return "VALUE"


def setting_meant(error, words: list[str]) -> str:
    "What to type in place of an unknown option of `ctseg fit` that a recipe has, or may have; else empty."
    option = getattr(error, "option_name", None)
    if not option or error.ctx is None or error.ctx.info_name != "fit":
        return ""
    from ctseg.core.meant import meant
    from ctseg.recipes.table import DEFAULT_RECIPE, get_recipe
    from ctseg.runs.recipe import all_meanings, is_setting
    key, value = option.lstrip("-").replace("-", "_"), value_of(option, words)
    if is_setting(key):
        return f"give --set {key}={value}"
    near = meant(key, all_meanings(get_recipe(DEFAULT_RECIPE).groups()))
    typed = [name if name.startswith("--") else f"--set {name}={value}" for name in near]
    return f"did you mean {' or '.join(typed)}?" if typed else ""


# %% [markdown]
# The value may follow its option in either spelling. Without one we take the placeholder of the help.

# %%
for line, value in {"fit --lr 0.1": "0.1", "fit --lr=0.1": "0.1", "fit --lr --resume": "VALUE"}.items():
    print(f"{line:<18}", value_of("--lr", line.split()))
    test_eq(value_of("--lr", line.split()), value)


# %% [markdown]
# An option that may be given several times takes one value each time. What is left over behind one is told as it should be typed.

# %%
#| export
def _typed_again(words: list[str], extra: list[str], repeated: set[str]) -> str:
    "What to type for words that are left `extra` on a line of `words`, if an option that may be `repeated` is meant; else empty."
    option = value = ""
    for word in words[:words.index(extra[0])] if extra[0] in words else []:
        if word.startswith("--"): option, _, value = word.partition("=")
        else: value = word
    if "--set" in repeated and all(re.fullmatch(r"[a-z_.]+=\S+", word) for word in extra):
        option = "--set"
    elif option == "--set" and "=" not in value and len(extra) == 1:  # a blank in place of =
        extra = [f"{value}={extra[0]}"]
    if option not in repeated: return ""
    return " ".join(["write", *(f"{option} {word}" for word in extra)])


def _extra_meant(error, words: list[str]) -> str:
    "What to type in place of extra arguments, see `_typed_again`; empty for another error."
    match = re.search(r"extra argument.*\(([^()]+)\)", error.message)
    if match is None or error.ctx is None: return ""
    options = [option for option in error.ctx.command.params if getattr(option, "multiple", False)]
    repeated = {name for option in options for name in option.opts}
    return _typed_again(words, match[1].split(), repeated)


# %%
for line, extra in {
    "fit data --set lr=1e-3 epochs=40": "epochs=40",
    "fit data --set lr 1e-3": "1e-3",
    "fit data --plugin a.py b.py": "b.py",
    "fit data more --plugin a.py": "more",
}.items():
    print(f"{line:<35}", _typed_again(line.split(), [extra], {"--set", "--plugin"}))


# %%
#| export
def usage_line(error, words: Iterable[str] = ()) -> str:
    "A wrong command line, of these `words`, in one line; the whole help where nothing was typed at all."
    if type(error).__name__ == "NoArgsIsHelpError":
        return error.format_message()
    command = error.ctx.command_path if error.ctx else "ctseg"
    remedy = setting_meant(error, list(words)) or _extra_meant(error, list(words))
    if remedy:
        error.possibilities, remedy = None, f"; {remedy}"  # those are like the letters only
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"ctseg: {text[:1].lower()}{text[1:]}{remedy} (see `{command} --help`)"


# %% [markdown]
# A setting of the recipe is not an option of `fit`. If it is typed as one, the line says how to give it.

# %%
mistake = typer.BadParameter("No such option: --epochs.")
print(usage_line(mistake))
mistake.option_name, mistake.ctx = "--epochs", SimpleNamespace(info_name="fit", command_path="ctseg fit")
print(usage_line(mistake, ["fit", "my_data", "--epochs", "5"]))

# %% [markdown]
# Hosts and batch systems end a process by the signal SIGTERM, a lost connection or a closed terminal by SIGHUP (not under `nohup`). Both end a command as Ctrl-C does: no half-written file stays. `fit` treats them
# in its own way, and stops with everything saved.

# %%
#| export
TIDY = 10.  # seconds

@contextlib.contextmanager
def clean_end() -> Iterator[None]:
    """SIGTERM and the like become an exit, on the way to which temporary files are removed.

    Another one within `TIDY` seconds must not interrupt that; later a library has swallowed the exit.
    """
    last = -TIDY
    def stop(number: int, _) -> None:
        nonlocal last
        if time.monotonic() < last + TIDY: return
        last = time.monotonic()
        raise SystemExit(128 + number)
    put_back = hear_end(stop)
    try:
        yield
    finally:
        put_back()


# %%
for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
    try:
        with clean_end(): signal.raise_signal(number)
    except SystemExit as e: test_eq(e.code, 128 + number)

with clean_end():
    with contextlib.suppress(SystemExit): signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # too soon: not heard


# %%
#| export
def our_warnings(package: Path, other: Callable[..., str]) -> Callable[..., str]:
    "A formatter that tells warnings of the `package`'s files in one line, and leaves the rest to `other`."
    def format_warning(message, category, filename, *more) -> str:
        if Path(filename).is_relative_to(package):
            return f"ctseg: {printable(str(message))}\n"
        return other(message, category, filename, *more)
    return format_warning


# %% [markdown]
# A warning of ctseg is one line. A warning of a library keeps its own form.

# %%
tell = our_warnings(Path("/ctseg"), lambda *a: "in the library's own form")
lines = [tell("few patients", UserWarning, f"/{package}/x.py", 1) for package in ("ctseg", "numpy")]
print(*lines, sep="")
test_eq(lines, ["ctseg: few patients\n", "in the library's own form"])
