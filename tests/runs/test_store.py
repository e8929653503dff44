"""Run files: every finished row survives crashes, full disks and second writers."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from qvl_lab.errors import StoreError
from qvl_lab.runs.records import SCHEMA_VERSION, environment_key
from qvl_lab.runs.store import ANSWER_COLUMNS, Runs, Store


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


def lock_of(path: Path) -> Path:
    """The file whose lock says that somebody writes; it stays where it is."""
    return path.with_name(f".{path.name}.lock")


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
from qvl_lab.runs.records import Run
from qvl_lab.runs.store import Store

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
    assert sorted(written.parent.iterdir()) == [lock_of(written), written]


def test_a_complete_last_row_without_its_line_break_is_kept(written):
    count = len(Runs.load(written))
    written.write_bytes(written.read_bytes().rstrip(b"\n"))
    with Store(written) as store:
        assert len(store.runs) == count
    assert written.read_bytes().endswith(b"\n")
    assert len(Runs.load(written)) == count


# ---- answers


@pytest.fixture
def answered(on_cpu):
    """A run with an answer for each text; batch sizes tell runs apart."""

    def make(batch_size, *texts, **parts):
        rows = [
            {"id": f"item {i}", "task": None, "question": "?", "expected": "yes", "answer": text}
            for i, text in enumerate(texts)
        ]
        return on_cpu(batch_size, answers=rows, **parts)

    return make


@pytest.fixture
def answers_file(path) -> Path:
    return path.with_name("runs.answers.jsonl")


def append(path, *runs) -> None:
    with Store(path) as store:
        for run in runs:
            store.append(run)


def said(runs) -> list[tuple[str, str | None]]:
    return list(runs.answers()[["id", "answer"]].itertuples(index=False, name=None))


def test_answers_go_to_a_file_of_their_own(path, answers_file, answered):
    runs = [answered(1, "yes", None), answered(2, "图\u2028\n")]
    append(path, *runs)
    assert [json.loads(line)["answers"] for line in path.read_bytes().splitlines()] == [[], []]
    lines = [json.loads(line) for line in answers_file.read_bytes().splitlines()]
    assert [line["answer"] for line in lines] == ["yes", None, "图\u2028\n"]
    assert {tuple(line) for line in lines} == {(*ANSWER_COLUMNS, "item")}
    assert [line["item"] for line in lines] == ["0", "1", "0"]
    loaded = Runs.load(path)
    assert [run.answers for run in loaded] == [[], []]
    table = loaded.answers()
    assert tuple(table.columns) == ANSWER_COLUMNS
    assert table["run"].tolist() == [runs[0].key, runs[0].key, runs[1].key]
    assert set(table["environment"]) == {environment_key(runs[0].environment)}
    assert table.loc[0, ["id", "question", "expected"]].tolist() == ["item 0", "?", "yes"]
    assert table["task"].isna().all()
    assert table["answer"].tolist() == ["yes", None, "图\u2028\n"]
    assert Runs(runs).answers().equals(table)  # also before they are in a file


def test_runs_without_answers_leave_no_file_of_them(written, answers_file):
    assert not answers_file.exists()
    answers = Runs.load(written).answers()
    assert answers.empty
    assert tuple(answers.columns) == ANSWER_COLUMNS


def test_only_the_runs_own_answers_are_given(path, answered):
    append(path, answered(1, "a"), answered(2, "b"))
    runs = Runs.load(path)
    assert said(Runs(runs[1:], path=path)) == [("item 0", "b")]


def test_answers_of_a_run_measured_again_replace_the_old_ones(path, answered):
    append(path, answered(1, "old", "old"), answered(2, "b"), answered(1, "new", "newer"))
    assert said(Runs.load(path)) == [("item 0", "b"), ("item 0", "new"), ("item 1", "newer")]


def test_answers_of_two_environments_are_told_apart(path, answered):
    there = {"torch": "1.0", "host": "a"}
    append(path, answered(1, "here"), answered(1, "there", environment=there))
    runs = Runs.load(path)
    assert runs[0].key == runs[1].key
    table = runs.answers().set_index("environment")["answer"]
    assert table[environment_key(runs[0].environment)] == "here"
    assert table[environment_key({"torch": "1.0", "host": "b"})] == "there"


def test_a_torn_last_answer_is_passed_over_and_the_next_one_starts_a_line(
    path, answers_file, answered
):
    append(path, answered(1, "a", "torn"))
    answers_file.write_bytes(answers_file.read_bytes()[:-20])
    assert said(Runs.load(path)) == [("item 0", "a")]
    append(path, answered(2, "b"))
    assert said(Runs.load(path)) == [("item 0", "a"), ("item 0", "b")]
    append(path, answered(1, "a", "whole"))
    assert said(Runs.load(path)) == [("item 0", "b"), ("item 0", "a"), ("item 1", "whole")]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\x00",
        b"[]",
        b"7",
        b'{"run": "x"}',
        b"[" * 100_000,
        json.dumps({name: [] for name in ANSWER_COLUMNS}).encode(),
        json.dumps({name: {} for name in ANSWER_COLUMNS}).encode(),
    ],
    ids=["bytes", "list", "number", "columns", "deep", "lists", "objects"],
)
def test_lines_that_are_no_answers_are_passed_over(path, answers_file, answered, line):
    append(path, answered(1, "a"))
    answers_file.write_bytes(line + b"\n\n" + answers_file.read_bytes() + line)
    assert said(Runs.load(path)) == [("item 0", "a")]


def test_answers_may_hold_half_characters(path, answered):
    text = "half \ud83d of one \udc80"
    append(path, answered(1, text, "whole 😀"))
    assert said(Runs.load(path)) == [("item 0", text), ("item 1", "whole 😀")]


def test_answers_that_cannot_be_written_keep_all_finished_rows(path, answers_file, answered):
    append(path, answered(1))
    before = path.read_bytes()
    answers_file.mkdir()
    with Store(path) as store:
        with pytest.raises(StoreError, match=r"All 1 finished rows are kept"):
            store.append(answered(2, "b"))
        assert path.read_bytes() == before
        answers_file.rmdir()
        store.append(answered(2, "b"))
    assert batches(Runs.load(path)) == [1, 2]
    assert said(Runs.load(path)) == [("item 0", "b")]


def test_answers_are_set_aside_with_their_rows(path, answers_file, answered):
    append(path, answered(1, "old"))
    with Store(path) as store:
        target = store.set_aside()
        assert not answers_file.exists()
        store.append(answered(1, "new"))
    assert said(Runs.load(target)) == [("item 0", "old")]
    assert said(Runs.load(path)) == [("item 0", "new")]
    assert target.with_name("runs.1.answers.jsonl").exists()


def test_answers_left_from_before_are_not_overwritten(path, answered):
    left = path.with_name("runs.1.answers.jsonl")
    left.write_text("of a run file that was moved away\n")
    append(path, answered(1, "a"))
    with Store(path) as store:
        assert store.set_aside() == path.with_name("runs.2.jsonl")
    assert left.read_text().startswith("of a run file")


def test_rows_stay_where_their_answers_cannot_be_moved(path, answers_file, answered, monkeypatch):
    append(path, answered(1, "a"))
    before = path.read_bytes()

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with Store(path) as store, pytest.raises(StoreError, match=r"cannot move.*Permission denied"):
        store.set_aside()
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [lock_of(path), answers_file, path]
    assert said(Runs.load(path)) == [("item 0", "a")]


def test_quality_of_unknown_truth_is_the_agreement_of_the_answers_beside_the_file(path, answered):
    append(path, answered(1, "a", "b"), answered(2, "a", "zzz"))
    table = Runs.load(path).frame()
    assert table["quality_kind"].tolist() == ["agreement", "agreement"]
    assert table["quality"].tolist() == [1.0, 0.5]


def test_no_runs_make_an_empty_table():
    assert Runs().frame().empty
    assert Runs().answers().empty


ANSWER = {"task": None, "question": "?", "expected": None}


def test_no_answer_is_lost_where_items_share_an_id(path, on_cpu):
    answers = [{"id": "q", **ANSWER, "answer": text} for text in ("red", "blue")]
    run = on_cpu(1, answers=answers)
    with Store(path) as store:
        store.append(run)
        assert store.runs.answers()["answer"].tolist() == ["red", "blue"]
        store.append(replace(run, answers=[{**answer, "answer": "green"} for answer in answers]))
    assert Runs.load(path).answers()["answer"].tolist() == ["green", "green"]
    assert Runs([run]).answers()["answer"].tolist() == ["red", "blue"]


def test_answers_written_before_items_had_numbers_are_read(path, on_cpu):
    run = on_cpu(1, answers=[{"id": n, **ANSWER, "answer": n} for n in ("a", "b")])
    with Store(path) as store:
        store.append(run)
    beside = path.with_name(f"{path.stem}.answers{path.suffix}")
    rows = [json.loads(line) for line in beside.read_text().splitlines()]
    for row in rows:
        del row["item"]
    again = {**rows[0], "answer": "c"}
    beside.write_text("".join(json.dumps(row) + "\n" for row in [*rows, again]))
    found = Runs.load(path).answers()
    assert found[["id", "answer"]].to_numpy().tolist() == [["b", "b"], ["a", "c"]]


def test_the_lock_holds_between_processes_and_ends_with_its_process(path):
    program = (
        "import sys, time\nfrom qvl_lab.runs.store import Store\n"
        "with Store(sys.argv[1]):\n    print('open', flush=True)\n    time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(StoreError, match="being written by another sweep"):
            Store(path)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with Store(path):
        pass
