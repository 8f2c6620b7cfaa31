"""A short, seeded round of `make fuzz`: damaged files of all kinds, every command; each ends well, or in
one line and without a trace."""
import pytest
from helpers.fuzz.elsewhere import prepare, trial, whole
from helpers.processes import elsewhere

TRIALS = 70


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    with elsewhere() as call:
        call(prepare, tmp_path_factory.mktemp("fuzz")/"world")
        yield call


def test_whole_files_are_read(there):
    for name in ("check", "predict", "evaluate", "stored"):
        result = there(whole, name)
        assert result.status == 0 and not result.faults, (name, result)


def test_damaged_files_end_in_a_result_or_in_one_line(there):
    results = [there(trial, seed) for seed in range(1000, 1000 + TRIALS)]
    kinds = {r.kind for r in results}
    print(f"{len(results)} trials, {len(kinds)} kinds, {sum(r.status == 2 for r in results)} refused")
    assert not [(seed, r) for seed, r in enumerate(results, 1000) if r.faults]
    assert (
        len(kinds) > TRIALS//2
        and any(r.status == 2 for r in results)
        and any(r.status == 0 for r in results)
    )


@pytest.mark.parametrize("name, "
                         "fault", [("fail_badly", "traceback"), ("leave_something", "left over half.csv")])
def test_faults_are_found(there, name, fault):
    result = there(whole, name)
    assert any(f.startswith(fault) for f in result.faults)
