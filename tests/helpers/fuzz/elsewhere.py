"A fuzzer in a process of its own: it forks for every trial, which the process of the tests must not do."
from pathlib import Path

from ctseg.core.errors import InputError

from .trials import TARGETS, Fuzzer, Result, Target
from .world import make_world, warm

SLOW = ("export dicom-seg", "segment dicom", "fit recipe")  # left to `make fuzz`


def fail_badly():
    raise KeyError("a mistake of ours")


def leave_something():
    Path("half.csv").write_text("half")
    raise InputError("too late")


PLANTED = [
    Target(call.__name__, (), ("sub.csv",), ("sub.csv",), call=call) for call in (fail_badly, leave_something)
]

fuzzer: Fuzzer


def prepare(folder: Path):
    global fuzzer
    world = make_world(folder)
    warm(world)
    fuzzer = Fuzzer(world.resolve(), [target for target in TARGETS if target.name not in SLOW])


def whole(name: str) -> Result:
    "The target of this name with nothing damaged."
    return fuzzer.whole(next(target for target in [*fuzzer.targets, *PLANTED] if target.name == name))


def trial(seed: int) -> Result:
    return fuzzer.trial(seed)
