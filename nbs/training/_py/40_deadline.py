# %% [markdown]
# # Deadline
#
# > Stop in time, with everything saved: before a limit, or when the host asks for it.

# %%
#| default_exp training.deadline

# %%
#| export
import contextlib
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from ctseg.core.errors import InputError

# %%
#| hide
from fastcore.test import test_eq

# %% [markdown]
# A cluster sends SIGTERM before it ends a session, and a terminal SIGHUP when it is closed or its connection is lost; under `nohup` that one is not heard. A job of Slurm may ask for another one a while before its end (`--signal=USR1@120`), and a limit of processor time sends SIGXCPU. All of them are heard; SIGUSR1 and the rarer ones only where no one else listens, since a program that calls `fit` may use them for itself. Kaggle just ends it. A run can therefore be given a limit, `--time-limit 8h30m`. It then stops by itself between two steps, while there is still time for a checkpoint.

# %%
#| export
ALWAYS = ("SIGTERM", "SIGHUP")
UNUSED = ("SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGQUIT", "SIGALRM", "SIGVTALRM", "SIGPROF")

def is_heard(each: signal.Signals) -> bool:
    "May a signal be heard: does whoever started this not want it ignored, and no one else use it?"
    handler = signal.getsignal(each)
    if each.name in ALWAYS: return handler != signal.SIG_IGN
    return handler == signal.SIG_DFL or getattr(handler, "__module__", "").startswith("ctseg.")

def end_signals() -> list[signal.Signals]:
    "The signals that ask this process to end, as far as they may be heard."
    named = [getattr(signal, name, None) for name in ALWAYS + UNUSED]  # Windows has one of them
    return [each for each in named if each and is_heard(each)]

def hear_end(handler: Callable) -> Callable[[], None]: # puts the former handlers back
    "Let `handler` have the signals of `end_signals`; only the main thread gets any."
    main = threading.current_thread() is threading.main_thread()
    former = {each: signal.signal(each, handler) for each in end_signals() if main}
    def put_back() -> None:
        for each, before in former.items(): signal.signal(each, before)
    return put_back


# %%
test_eq(signal.SIGTERM in end_signals(), True)
before = signal.signal(signal.SIGUSR1, lambda *_: None)  # as a program that queues jobs may
test_eq([signal.SIGUSR1 in end_signals(), signal.SIGUSR2 in end_signals()], [False, True])
signal.signal(signal.SIGUSR1, before)
test_eq(signal.SIGUSR1 in end_signals(), True)


# %%
#| export
class Stopped(Exception):
    "The run was stopped on purpose, with everything saved; the text says where and why."

SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}

def read_duration(text: str) -> float:
    "The seconds in a length of time such as `8h30m`, `90m` or `45s`; `InputError` for another text."
    compact = text.replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise InputError(f"time limit {text!r}: expected a length of time such as 8h30m, 90m or 45s")
    return sum(float(number)*SECONDS[unit] for number, unit in parts)


# %%
for text in ("8h30m", "90m", "1.5h", "45s"): print(text, read_duration(text))
try: read_duration("8:30")
except InputError as e: print(e)


# %% [markdown]
# The deadline is asked after every step whether the next one fits. With several processes one answer holds for all.

# %%
#| export
class Deadline:
    "When to stop: a time limit comes near, or one of `end_signals` comes, to which a `with` block listens."
    def __init__(self, limit: float = math.inf): # seconds from now
        self.end = time.monotonic() + limit
        self.margin = min(60, 1 + 0.02*limit)
        self.asked = ""

    def why(self, need: float = 0.) -> str:
        "The reason to stop now, or ''; `need`: seconds of the next piece of work."
        if self.asked: return self.asked
        return "time limit" if time.monotonic() + 2*need + self.margin > self.end else ""

    def each(self, items: Iterable, what: str, ask: Callable = bool) -> Iterator:
        """Go through `items`; raises `Stopped` before one that may not end in time, judged by the slowest.

        The first is always done. `ask`: `agree`, where several processes must stop together."""
        slowest = None
        for item in items:
            if slowest is not None:
                why = self.why(slowest)
                if ask(bool(why)):
                    raise Stopped(f"{why or 'another process'}: stopped {what}")
            start = time.monotonic()
            yield item
            slowest = max(slowest or 0., time.monotonic() - start)

    def __enter__(self):
        self.put_back = hear_end(self.ask)
        return self

    def ask(self, number: int, *_) -> None:
        "The handler of the signals."
        self.asked = signal.Signals(number).name

    def __exit__(self, *_):
        self.put_back()


# %%
hour = Deadline(3600)
# twice the need, and a margin of a minute
for need in (0, 1700, 1800): print(f"next step takes {need} s: {hour.why(need) or 'go on'}")
with Deadline() as never:
    test_eq(never.why(need=1e6), "")
    signal.raise_signal(signal.SIGTERM)
    test_eq(never.why(), "SIGTERM")


# %% [markdown]
# How long the next step may take is judged by the slowest so far.

# %%
#| export
class Pace:
    "The seconds that the slowest piece of work of each kind has taken."
    def __init__(self):
        self.slowest: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        "Measure a block."
        start = time.monotonic()
        yield
        self.slowest[kind] = max(self.slowest.get(kind, 0.), time.monotonic() - start)

    @property
    def need(self) -> float:
        "One piece of work of every kind, in seconds."
        return sum(self.slowest.values())


# %%
pace = Pace()
for seconds in (0.01, 0.03, 0.02):
    with pace.timed("step"): time.sleep(seconds)
assert 0.03 <= pace.need < 0.3
print("timed:", *pace.slowest)
