"Files are whole or not there."
import errno
import os
import stat
import subprocess
import sys
import threading
import time

import pytest
from helpers.folders import tree

from ctseg.core import atomic, json_files
from ctseg.core.errors import InputError


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "as if")])
def test_a_folder_is_not_lost_between_two_renames(tmp_path, monkeypatch, error):
    "The old folder is moved aside before the new one takes its place; cut in between, it goes back."
    (tmp_path/"old").mkdir()
    (tmp_path/"old"/"a.png").write_text("old")
    before, real, calls = tree(tmp_path), os.replace, []
    def cut(a, b):
        calls.append(a)
        if len(calls) == 2: raise error
        real(a, b)
    monkeypatch.setattr(atomic.os, "replace", cut)
    with pytest.raises((InputError, KeyboardInterrupt)), atomic.atomic_path(tmp_path/"old") as tmp:
        tmp.mkdir()
        (tmp/"b.png").write_text("new")
    assert len(calls) == 2 and tree(tmp_path) == before


def test_nothing_is_left_where_no_descriptor_is_left(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with pytest.raises(InterruptedError), atomic.atomic_path(tmp_path/"a.csv") as new:
            new.write_text("half")
            free = os.open(tmp_path, os.O_RDONLY)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))  # nothing can be opened any more
            raise InterruptedError
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    pipe, heard = tmp_path/"pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    json_files.write_json([1], pipe, indent=None)
    reader.join(10)
    assert heard == ["[1]\n"] and stat.S_ISFIFO(pipe.stat().st_mode) and list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("redirected", [False, True])
def test_standard_output_is_written_to(tmp_path, redirected):
    "As `--json /dev/stdout`, to a pipe and to a file, which goes on to receive what is printed."
    code = (
        "from ctseg.core.json_files import write_json as w; print('before', flush=True); w([1], '/dev/stdout', "
        "None); print('after')"
    )
    if not redirected:
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    else:
        with open(tmp_path/"out.txt", "a") as f:
            subprocess.run([sys.executable, "-c", code], stdout=f, check=True)
        out = (tmp_path/"out.txt").read_text()
    assert out.endswith("[1]\nafter\n") and (redirected or out == "before\n[1]\nafter\n")


def test_a_null_device_is_not_replaced(tmp_path):
    "A node made for this test, where the system lets us make one."
    node = tmp_path/"null"
    try: os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except OSError: pytest.skip("no device nodes here")
    try:
        json_files.write_json([1], node)
    except InputError:
        pass  # a file system without devices
    assert stat.S_ISCHR(node.stat().st_mode) and list(tmp_path.iterdir()) == [node]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path/"elsewhere").mkdir()
    target, link = tmp_path/"elsewhere"/"a.json", tmp_path/"a.json"
    link.symlink_to(target)
    for value in (1, 2):  # the file is made, then replaced
        json_files.write_json(value, link)
        assert link.is_symlink() and not target.is_symlink() and json_files.read_json(target) == value
    folder = tmp_path/"folder"
    folder.symlink_to(tmp_path/"elsewhere")
    with atomic.atomic_path(folder) as tmp:
        tmp.mkdir()
        (tmp/"b.json").write_text("3")
    assert folder.is_symlink() and [p.name for p in (tmp_path/"elsewhere").iterdir()] == ["b.json"]


def test_a_link_that_leads_to_itself_is_told(tmp_path):
    loop = tmp_path/"loop"
    loop.symlink_to("loop")
    for path in (loop, loop/"a.json"):
        with pytest.raises(InputError, match="loop"): json_files.write_json({}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["loop"] and loop.is_symlink()


@pytest.mark.parametrize("folder", [False, True])
def test_data_are_on_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch, folder):
    events, sync, replace = [], os.fsync, os.replace
    def synced(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)
    def renamed(a, b):
        events.append("rename")
        replace(a, b)
    monkeypatch.setattr(atomic.os, "fsync", synced)
    monkeypatch.setattr(atomic.os, "replace", renamed)
    with atomic.atomic_path(tmp_path/"new") as tmp:
        if folder: tmp.mkdir()
        (tmp/"inside.txt" if folder else tmp).write_text("a")
    assert events == ["inside.txt"]*folder + ["new", "rename", tmp_path.name]


def test_a_disk_that_fails_at_the_very_end_is_told(tmp_path, monkeypatch):
    (tmp_path/"a.json").write_text("1")
    def full(_): raise OSError(errno.ENOSPC, "as if")
    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full"): json_files.write_json(2, tmp_path/"a.json")
    assert (tmp_path/"a.json").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_within_another_write_names_what_was_asked_for(tmp_path):
    with pytest.raises(InputError) as told:
        with atomic.atomic_path(tmp_path/"a.csv") as outer, atomic.atomic_path(outer):
            raise OSError(errno.ENOSPC, "as if")
    assert str(told.value) == f"cannot write {tmp_path/'a.csv'}: the disk is full"


KILLED = """
import os
import signal
import sys
from ctseg.core.atomic import atomic_path
with atomic_path(sys.argv[1]) as tmp:
    tmp.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_writer(path):
    "What a killed writer leaves beside `path`, an hour old."
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    left, = path.parent.glob(f".*{atomic.PART}")
    os.utime(left, (time.time() - 3600,)*2)
    return left


def test_the_next_writer_sweeps(tmp_path):
    left = killed_writer(tmp_path/"a.txt")
    json_files.write_json(1, tmp_path/"b.txt")  # another file's writer leaves it alone
    assert left.exists()
    json_files.write_json(1, tmp_path/"a.txt")
    assert not left.exists() and {p.name for p in tmp_path.iterdir()} == {"a.txt", "b.txt"}


def test_the_sweep_gives_back_an_old_folder(tmp_path):
    "Killed between the two renames, a writer has left the only copy in its temporary folder."
    left = killed_writer(tmp_path/"data")
    (left/".old").mkdir()
    (left/".old"/"a.png").write_text("old")
    os.utime(left, (time.time() - 3600,)*2)
    with pytest.raises(KeyboardInterrupt), atomic.atomic_path(tmp_path/"data"): raise KeyboardInterrupt
    assert tree(tmp_path) == {
        tmp_path.joinpath("data").relative_to(tmp_path): None,
        tmp_path.joinpath("data/a.png").relative_to(tmp_path): b"old",
    }


def test_the_sweep_leaves_the_living_alone(tmp_path):
    path = tmp_path/"a.txt"
    with atomic.atomic_path(path) as tmp:
        tmp.write_text("first")
        os.utime(tmp.parent, (time.time() - 3600,)*2)  # it has been writing for an hour
        json_files.write_json("second", path)
        assert tmp.exists()
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_the_sweep_leaves_the_young_alone(tmp_path):
    left = tmp_path/f".a.txt.young{atomic.PART}"
    left.mkdir()
    json_files.write_json(1, tmp_path/"a.txt")
    assert left.exists()


@pytest.mark.parametrize("name", ["n"*255, "n"*251 + ".csv", "ä"*127, "n"*201, ".part", "x.part"])
def test_any_name_that_the_disk_takes_can_be_written(tmp_path, name):
    for text in ("one", "two"):
        with atomic.atomic_path(tmp_path/name) as tmp: tmp.write_text(text)
    assert (tmp_path/name).read_text() == "two" and os.listdir(tmp_path) == [name]
    with pytest.raises(InputError), atomic.atomic_path(tmp_path/"x"/("n"*256)) as tmp: tmp.write_text("x")
    assert os.listdir(tmp_path) == [name]


def test_killed_writers_of_long_names_are_swept(tmp_path):
    name = "n"*255
    with atomic.atomic_path(tmp_path/name) as tmp:
        tmp.write_text("x")
        left = tmp.parent.with_name(tmp.parent.name.replace(".part", "x.part"))
        left.mkdir()
    os.utime(left, (0, 0))
    with atomic.atomic_path(tmp_path/("m"*255)) as tmp: tmp.write_text("another file")
    assert left.exists()
    with atomic.atomic_path(tmp_path/name) as tmp: tmp.write_text("x")
    assert not left.exists()


def test_a_folder_is_flushed_without_threads_where_memory_is_limited(tmp_path, monkeypatch):
    if atomic.resource is None: pytest.skip("no such limits here")
    flushed = []
    monkeypatch.setattr(atomic.resource, "getrlimit", lambda kind: (1 << 30, 1 << 30))
    monkeypatch.setattr(atomic, "ThreadPoolExecutor", None)
    monkeypatch.setattr(atomic, "_flush_one", flushed.append)
    with atomic.atomic_path(tmp_path/"new") as tmp:
        tmp.mkdir()
        (tmp/"a").touch()
    assert "a" in [path.name for path in flushed]


@pytest.mark.parametrize("rival", ["folder", "file"])
def test_a_folder_that_came_meanwhile_is_not_replaced(tmp_path, rival):
    "Two commands with one output: the first one to end wins, and the other is told."
    with pytest.raises(InputError, match="another command has written it meanwhile"), atomic.atomic_path(tmp_path/"out", new=True) as tmp:
        tmp.mkdir()
        (tmp/"mine").touch()
        if rival == "folder": (tmp_path/"out").mkdir()
        (tmp_path/"out"/"theirs" if rival == "folder" else tmp_path/"out").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"][:1 + (rival == "folder")]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path/"out").mkdir()
    with atomic.atomic_path(tmp_path/"out", new=True) as tmp:
        tmp.mkdir()
        (tmp/"mine").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_what_a_library_still_writes_goes_too(tmp_path):
    "As zarr does, whose threads go on for a moment after an interruption."
    stop, began = threading.Event(), threading.Event()
    def write(folder):
        for i in range(20):
            if stop.wait(.01): return
            if folder.parent.is_dir():
                folder.mkdir(exist_ok=True)
                (folder/f"{i}").touch()
            began.set()
    with pytest.raises(KeyboardInterrupt), atomic.atomic_path(tmp_path/"out") as tmp:
        writer = threading.Thread(target=write, args=(tmp,))
        writer.start()
        began.wait()
        raise KeyboardInterrupt
    stop.set()
    writer.join()
    assert not list(tmp_path.iterdir())
