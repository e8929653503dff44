"""Run files: every finished row survives crashes, full disks and second writers."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from qvl_lab.errors import StoreError
from qvl_lab.records import SCHEMA_VERSION
from qvl_lab.sweeps.store import Runs, Store


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "runs.jsonl"


@pytest.fixture
def written(path, on_cpu) -> Path:
    """A file of two rows, batch 1 and 2."""
    with Store(path) as store:
        store.append(on_cpu(1))
        store.append(on_cpu(2))
    return path


def batches(runs) -> list[int]:
    return [run.config["batch_size"] for run in runs]


def test_what_was_appended_is_loaded(path, on_cpu):
    runs = [on_cpu(1), on_cpu(2, status="oom", reason="no room"), on_cpu(4, status="skipped")]
    with Store(path) as store:
        for run in runs:
            store.append(run)
    loaded = Runs.load(path)
    assert list(loaded) == runs
    assert loaded.notes == []
    assert loaded.path == path
    assert loaded.file_sha256 == sha256(path.read_bytes()).hexdigest()


def test_each_row_is_a_line_on_disk_before_append_returns(path, on_cpu):
    with Store(path) as store:
        for count in (1, 2, 3):
            store.append(on_cpu(count))
            assert len(path.read_bytes().splitlines()) == count


def test_missing_folders_are_made(tmp_path, on_cpu):
    with Store(tmp_path / "a" / "b" / "runs.jsonl") as store:
        store.append(on_cpu())
    assert batches(Runs.load(tmp_path / "a" / "b" / "runs.jsonl")) == [1]


def test_the_last_row_of_a_key_wins_within_its_environment(path, on_cpu):
    elsewhere = {"torch": "1.0"}
    with Store(path) as store:
        for run in (
            on_cpu(1, status="error", reason="x"),
            on_cpu(1, environment=elsewhere),
            on_cpu(1),
        ):
            store.append(run)
        assert len(store.runs) == 2
    runs = Runs.load(path)
    assert [(r.status, r.environment == elsewhere) for r in runs] == [("ok", False), ("ok", True)]
    assert len(runs.environments()) == 2


def test_a_torn_last_line_is_noted_and_cut_off_by_the_next_writer(written, on_cpu):
    whole = written.read_bytes()
    torn = whole + on_cpu(4).to_json().encode()[:100]
    written.write_bytes(torn)
    runs = Runs.load(written)
    assert batches(runs) == [1, 2]
    assert ["line 3" in note and "torn by a crash" in note for note in runs.notes] == [True]
    assert written.read_bytes() == torn  # reading changes nothing
    with Store(written) as store:
        assert batches(store.runs) == [1, 2]
        store.append(on_cpu(8))
    assert written.read_bytes().startswith(whole)
    assert batches(Runs.load(written)) == [1, 2, 8]
    assert Runs.load(written).notes == []


@pytest.mark.parametrize("cut", [2, 50, 500])
def test_wherever_the_last_line_is_torn_the_rows_before_it_stay(written, cut):
    written.write_bytes(written.read_bytes()[:-cut])
    with Store(written) as store:
        assert batches(store.runs)[0] == 1
        assert written.read_bytes().endswith(b"\n")
    assert batches(Runs.load(written)) == [1]


def test_a_last_row_that_lacks_only_its_line_break_is_kept(written, on_cpu):
    written.write_bytes(written.read_bytes()[:-1])
    assert batches(Runs.load(written)) == [1, 2]
    with Store(written) as store:
        store.append(on_cpu(4))
    assert batches(Runs.load(written)) == [1, 2, 4]
    assert Runs.load(written).notes == []


def test_a_damaged_line_in_the_middle_is_noted_and_left_alone(written, on_cpu):
    first, second = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(first + b"\xff\x00 no json\n" + b"{}\n" + second)
    runs = Runs.load(written)
    assert batches(runs) == [1, 2]
    assert len(runs.notes) == 2
    assert "line 2 of runs.jsonl is left out: not a JSON line" in runs.notes[0]
    assert "line 3 of runs.jsonl is left out: not a run" in runs.notes[1]
    with Store(written) as store:
        store.append(on_cpu(4))
    assert batches(Runs.load(written)) == [1, 2, 4]


def test_rows_of_another_schema_are_said_on_load_and_refused_for_appending(written):
    lines = written.read_text().splitlines()
    other = json.loads(lines[1]) | {"schema": SCHEMA_VERSION + 1}
    before = lines[0] + "\n" + json.dumps(other) + "\n"
    written.write_text(before)
    runs = Runs.load(written)
    assert batches(runs) == [1]
    assert f"schema version {SCHEMA_VERSION + 1}" in runs.notes[0]
    with pytest.raises(StoreError, match=r"cannot be continued.*schema version"):
        Store(written)
    assert written.read_text() == before


def test_a_second_writer_is_refused_and_the_first_goes_on(written, on_cpu):
    with Store(written) as store:
        with pytest.raises(StoreError, match="being written by another sweep"):
            Store(written)
        store.append(on_cpu(4))
    with Store(written) as store:  # free again
        assert batches(store.runs) == [1, 2, 4]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"junk\n"])
def test_a_file_without_runs_is_an_error_that_says_how_to_get_some(path, content):
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"holds no runs.*qvl-lab sweep"):
        Runs.load(path)


def test_a_missing_file_or_folder_is_an_error(tmp_path):
    with pytest.raises(StoreError, match=r"cannot read the run file.*No such file"):
        Runs.load(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the run file"):
        Store(tmp_path / "file" / "runs.jsonl")


def test_a_failing_sync_keeps_all_finished_rows(written, on_cpu, monkeypatch):
    before = written.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Store(written) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StoreError, match=r"No space left.*All 2 finished rows are kept"):
                store.append(on_cpu(4))
        assert written.read_bytes() == before
        with pytest.raises(StoreError, match="another sweep"):
            Store(written)  # still ours
        store.append(on_cpu(8))  # space was freed
    assert batches(Runs.load(written)) == [1, 2, 8]


_FILL = """
import resource, signal, sys
from pathlib import Path
from qvl_lab.errors import StoreError
from qvl_lab.records import Run
from qvl_lab.sweeps.store import Store

path = Path(sys.argv[1])
run = Run.from_json(path.read_bytes().splitlines()[0])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = path.stat().st_size + 3 * len(run.to_json()) + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
with Store(path) as store:
    for number in range(9):
        try:
            store.append(Run(**vars(run) | {"key": f"new {number}"}))
        except StoreError as e:
            print(f"stopped at {number}: {e}")
            break
"""


def test_a_disk_that_fills_up_keeps_all_finished_rows(written):
    result = subprocess.run(
        [sys.executable, "-c", _FILL, str(written)], capture_output=True, text=True, timeout=60
    )
    assert result.stdout.startswith("stopped at 3: cannot write"), result.stdout + result.stderr
    keys = [run.key for run in Runs.load(written)]
    assert keys[2:] == ["new 0", "new 1", "new 2"]
    assert Runs.load(written).notes == []


def test_rows_set_aside_are_kept_under_numbered_names(written, on_cpu):
    before = written.read_bytes()
    with Store(written) as store:
        assert store.set_aside() == written.with_name("runs.1.jsonl")
        assert len(store.runs) == 0
        store.append(on_cpu(16))
        assert store.set_aside() == written.with_name("runs.2.jsonl")
        store.append(on_cpu(32))
    assert written.with_name("runs.1.jsonl").read_bytes() == before
    assert batches(Runs.load(written.with_name("runs.2.jsonl"))) == [16]
    assert batches(Runs.load(written)) == [32]


def test_rows_that_cannot_be_set_aside_stay(written, monkeypatch):
    before = written.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Store(written) as store:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"cannot move.*No space left"):
            store.set_aside()
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


def test_a_complete_last_row_without_its_line_break_is_kept(written):
    count = len(Runs.load(written))
    written.write_bytes(written.read_bytes().rstrip(b"\n"))
    with Store(written) as store:
        assert len(store.runs) == count
    assert written.read_bytes().endswith(b"\n")
    assert len(Runs.load(written)) == count
