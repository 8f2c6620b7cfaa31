# %% [markdown]
# # The command line
#
# > Every command of `ctseg`, with all its options. This page is written by the program itself.

# %% [markdown]
# Whatever a notebook can do, a terminal can do with one line. Most days need five:
#
# ```sh
# ctseg check my_data                                   # is the folder right?
# ctseg fit my_data --out runs/first --set epochs=40    # train by the default recipe
# ctseg predict runs/first --images my_data/test-images --out submission.csv
# ctseg evaluate my_data/y_test.csv submission.csv      # where there is a truth
# ctseg segment runs/first scans --out results          # DICOM or NIfTI in and out
# ```
#
# * A mistake is one line on standard error and exit status 2; nothing half-written is left, not even by SIGTERM (status 143) or a lost terminal (SIGHUP, 129).
# * A run that was cut goes on with the same command and `--resume`. A training that is stopped by `--time-limit`, SIGTERM, SIGHUP or SIGUSR1 saves itself first, and ends with status 75.
# * `--set KEY=VALUE` reaches every field of a [recipe](../recipes/20_fit.ipynb). `ctseg recipes NAME` lists the fields with their values and what they mean. `--recipe runs/first/recipe.json` takes the recipe of a run.
# * `ctseg predict` decides by the rule that was chosen in training. `--rule argmax` leaves it out; `--tune FOLDER` chooses one anew, for all the runs together, and prints what it scores on the slices they held out. `--confidence FILE.csv` tells [how sure the prediction is](reading_the_report.ipynb#how-sure-is-a-prediction).
# * On a CPU another program can compute: `--engine openvino` or `--engine onnx` of `predict` and `segment` (extras of these names). What it answers is compared with PyTorch's first. [How much faster](../benchmarks/engines.ipynb) depends on the processor. `segment` takes OpenVINO where it is installed (`auto`). `predict` takes PyTorch, whose answers do not depend on another package. A GPU always computes with PyTorch.
# * A run is a folder, or a name on the hub: `ctseg predict hf://owner/name …`; `ctseg push` puts one there. [More](sharing_and_watching.ipynb), also of `--log`.
# * `ctseg merge A B --out C` makes one folder of several that outline other structures: [three hospitals](three_hospitals.ipynb).
# * `ctseg suggest RUN DATA` lists [what to annotate next](../prediction/57_suggest.ipynb).
# * What does not fit into memory goes into a store, which commands take like a folder: [more slices than memory](more_than_memory.ipynb). `torchrun` trains on [several cards or hosts](several_hosts.ipynb).
# * `--init RUN` starts from another run's weights, `--teacher RUN` keeps its classes alive: [adding a class](adding_a_class.ipynb).
# * `ctseg --version` tells the version, `ctseg doctor` what else a bug report needs.
# * `python -m ctseg` is the same program, for machines where the command is not on the path.
#
# What follows is what `ctseg COMMAND --help` says, put into tables.

# %%
#| hide
import typer
from IPython.display import Markdown
from ctseg.cli import app


# %%
#| hide
def option_row(names, help):
    "One argument or option as a line of a table; what stands in brackets behind its explanation gets a column."
    text, _, rest = (
        help.rpartition("  [")
        if "  [" in help
        else ("", "", help[1:]) if help.startswith("[") else (help, "", "]")
    )
    clean = lambda t: t.replace("|", "\\|").replace("<", "&lt;")
    return f"| `{names}` | {clean(text)} | {rest[:-1].removeprefix('default: ')} |"

def command_page(name, command):
    "Heading, usage, description and table of one command."
    ctx = command.make_context(f"ctseg {name}", [], resilient_parsing=True)
    rows = [option_row(*p.get_help_record(ctx)) for p in command.params]
    usage = " ".join(command.get_usage(ctx).removeprefix("Usage: ").split())
    return "\n".join(
        [
            f"## ctseg {name}",
            "",
            command.help or "",
            "",
            f"```sh\n{command.epilog}\n```",
            "",
            f"```\n{usage}\n```",
            "",
            "| | | default |",
            "|---|---|---|",
            *rows,
            "",
        ]
        if rows
        else [f"## ctseg {name}", "", command.help or "", "", f"```sh\n{command.epilog}\n```", ""]
    )


# %%
#| echo: false
#| output: asis
group = typer.main.get_command(app)
Markdown("\n".join(command_page(name, group.commands[name]) for name in group.list_commands(None)))

# %% [markdown]
# How the commands are made: [the notebook of the command line](../cli/90_main.ipynb).
