"The cache follows the content of the files, and is never in the way."
import os
import shutil
import time

import pytest
from helpers.folders import CSV, edit, row, tree, values

from ctseg.data import cache, images, mask_csv
from ctseg.data.challenge import read_challenge
from ctseg.data.mask_csv import read_masks


def test_cache_follows_content(data, monkeypatch):
    real = time.time_ns
    # as if the files were old enough for their hashes to be remembered
    monkeypatch.setattr(cache.time, "time_ns", lambda: real() + 10**10)
    first = read_challenge(data)
    calls = []
    table, pngs = mask_csv._read_table, images.read_pngs
    monkeypatch.setattr(mask_csv, "_read_table", lambda *a: calls.append("table") or table(*a))
    monkeypatch.setattr(images, "read_pngs", lambda *a: calls.append("images") or pngs(*a))
    assert read_challenge(data).fingerprint() == first.fingerprint() and not calls  # nothing is read again
    path = data/CSV
    stat = path.stat()
    k = next(k for k in range(256) if values(k)[4] == 1)
    line = [*map(str, values(k))]
    line[4] = "2"
    edit(path, (row(k, values(k)), row(k, line)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same date, other content
    assert path.stat().st_size == stat.st_size
    assert read_challenge(data).masks[4].ravel()[k] == 2 and calls == ["table"]
    shutil.copy(path, data.parent/"copy.csv")
    calls.clear()
    read_masks(data.parent/"copy.csv")  # the same content under another name
    assert not calls


def test_damaged_cache_is_made_again(data, tmp_path):
    first = read_challenge(data)
    for p in (tmp_path/"cache").rglob("*"):
        if p.is_file(): p.write_bytes(p.read_bytes()[:-5])
    assert read_challenge(data).fingerprint() == first.fingerprint()


def test_cache_that_cannot_be_written(data, tmp_path, monkeypatch):
    first = read_challenge(data)
    (tmp_path/"file").write_text("")
    monkeypatch.setenv("CTSEG_CACHE", str(tmp_path/"file"/"cache"))
    with pytest.warns(UserWarning, match="not be faster"):
        assert read_challenge(data).fingerprint() == first.fingerprint()


def test_cache_never_inside_the_data(data):
    before = tree(data)
    read_challenge(data), read_challenge(data, "test")
    assert tree(data) == before
