"A short, seeded round of `make fuzz`: damaged files of all kinds, every command; each ends well, or in one line and without a trace."
import pytest
from helpers.fuzz.trials import TARGETS, Fuzzer, Target
from helpers.fuzz.world import make_world, warm

TRIALS = 70
SLOW = ("export dicom-seg", "fit recipe")  # left to `make fuzz`


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("fuzz")/"world")
    warm(world)
    return Fuzzer(world.resolve(), [t for t in TARGETS if t.name not in SLOW])


def test_whole_files_are_read(fuzzer):
    for name in ("check", "predict", "evaluate", "stored"):
        target = next(t for t in fuzzer.targets if t.name == name)
        result = fuzzer.whole(target)
        assert result.status == 0 and not result.faults, (name, result)


def test_damaged_files_end_in_a_result_or_in_one_line(fuzzer):
    results = [fuzzer.trial(seed) for seed in range(1000, 1000 + TRIALS)]
    kinds = {r.kind for r in results}
    print(f"{len(results)} trials, {len(kinds)} kinds, {sum(r.status == 2 for r in results)} refused")
    assert not [(seed, r) for seed, r in enumerate(results, 1000) if r.faults]
    assert len(kinds) > TRIALS//2 and any(r.status == 2 for r in results) and any(r.status == 0 for r in results)


def fail_badly():
    raise KeyError("a mistake of ours")


def leave_something():
    from pathlib import Path

    from ctseg.core.files import InputError
    Path("half.csv").write_text("half")
    raise InputError("too late")


@pytest.mark.parametrize("call, fault", [(fail_badly, "traceback"), (leave_something, "left over half.csv")])
def test_faults_are_found(fuzzer, call, fault):
    result = fuzzer.whole(Target("planted", (), ("sub.csv",), ("sub.csv",), call=call))
    assert any(f.startswith(fault) for f in result.faults)
