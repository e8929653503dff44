"""What a newcomer mistypes: it is refused by name, at once, and nothing is promised in vain."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from qvl_lab.cli.options import several, single
from qvl_lab.errors import ConfigError
from qvl_lab.workloads.sources import load_workload

SMALL = "--device cpu --resolution 64 --max-new-tokens 2 --quiet"


# ---- values


@pytest.mark.parametrize(
    "line",
    [
        "run mixed --set batch_size=1,8",
        "profile mixed --set batch_size=1,8",
        "ablate --set block_size=16,32",
        "report runs.jsonl --current batch_size=1,8",
    ],
)
def test_several_values_where_one_is_taken_are_refused(qvl, line):
    result = qvl(line)
    assert (result.code, result.out) == (2, "")
    assert "names 2 values; give one here, or measure them all with 'qvl-lab sweep'" in result.err


def test_paths_are_not_cut_at_commas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert single("encoder_cache_dir", "/data/a,b") == "/data/a,b"
    assert several("encoder_cache_dir", "/data/1,2") == ["/data/1,2"]
    assert single("encoder_cache_dir", "none") is None
    Path("a,b").mkdir()
    assert several("model", "a,b") == ["a,b"]
    assert several("model", "tiny,random:8b") == ["tiny", "random:8b"]
    assert several("batch_size", "1, 8") == [1, 8]
    with pytest.raises(ConfigError, match="names 2 values"):
        single("batch_size", "1,8")


# ---- before the model is loaded


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run mixed --batch-size 0", "batch_size must be"),
        ("run mixed --resolution 7", "resolution must be"),
        ("run no/such/folder", "no/such/folder does not exist"),
        ("run mixed --model tinny", "Did you mean 'tiny'"),
        ("run mixed --gpu A1OG", "Did you mean 'A10G'"),
        ("run evaluation --metric cuont=anls", "Did you mean 'count'"),
        ("profile mixed --model random:9b", "random:8b"),
    ],
)
def test_a_typo_is_told_without_importing_torch(tmp_path, line, words):
    code = (
        f"import sys; sys.argv = ['qvl-lab', *{line.split()!r}]\n"
        "from qvl_lab.cli import main\ntry: main()\n"
        "except SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "False"]
    assert words in done.stderr


# ---- images


def test_photos_in_a_format_that_is_not_supported_make_exit_code_1(qvl, tmp_path):
    (tmp_path / "album").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "album" / "a.png")
    (tmp_path / "album" / "IMG_1.HEIC").write_bytes(bytes(99))
    result = qvl(f"run album {SMALL}")
    assert result.code == 1
    assert "failed: IMG_1.HEIC: HEIC is not supported: export the photo as JPEG" in result.err


def test_many_missing_files_are_counted_and_some_are_named(qvl, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    rows = ["a.png", *(f"gone/{i}.png" for i in range(1000))]
    (tmp_path / "big.csv").write_text("\n".join(["image", *rows]))
    result = qvl(f"run big.csv {SMALL}")
    assert result.code == 1
    (line,) = [line for line in result.err.splitlines() if line.startswith("failed: ")]
    assert line == (
        "failed: 1,000 items: cannot read the file: No such file or directory, e.g. "
        "'gone/0.png', 'gone/1.png', 'gone/2.png'"
    )
    assert "1 answered, 1000 failed" in result.err


def test_the_question_that_is_asked_unasked_for_is_said(qvl, photos):
    said = "the question is 'Describe this image.'; --question asks another one"
    assert said in qvl(f"run {photos}/red.png {SMALL}").err
    assert "the question is" not in qvl(f"run {photos}/red.png {SMALL} --question Why?").err
    words = " ".join(qvl("run --help").out.replace("│", " ").split())
    assert "without it: Describe this image" in words


def test_tiny_is_said_not_to_describe_and_the_example_asks_what_it_can_answer(qvl, photos):
    words = "as tiny cannot describe: it names colours, counts, locates and reads"
    assert words in qvl(f"run {photos}/red.png {SMALL}").err
    assert words not in qvl(f"run {photos}/red.png {SMALL} --model random:tiny").err
    shown = " ".join(qvl("run --help").out.split())
    known = {item.question for item in load_workload("evaluation").items}
    assert set(re.findall("--question '(.+?)'", shown)) & known


# ---- files that cannot be written


@pytest.mark.parametrize(
    "line",
    [
        "report runs.jsonl --out taken",
        "report runs.jsonl --out taken/review",
        "profile mixed --out taken",
        "doctor --ceilings taken/c.json",
        "doctor --ceilings .",
    ],
)
def test_a_place_that_cannot_be_written_is_said_at_once(qvl, line):
    Path("taken").write_text("a file")
    result = qvl(line)
    assert result.code == 2
    assert "cannot write" in result.err
    assert "folder" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "line", ["report r.jsonl --out a/b", "profile mixed --out a", "doctor --ceilings a/c.json"]
)
def test_a_closed_folder_is_said_at_once(qvl, line, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root may write anywhere
    result = qvl(line)
    assert result.code == 2
    assert "cannot write a" in result.err
    assert "Permission denied" in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermissionError(13, "Permission denied", "/x/a.csv"), 2),
        (OSError(28, "No space left on device", "/x/a.csv"), 3),
    ],
)
def test_a_file_that_turns_out_not_to_be_writable_is_no_fault_of_the_program(
    qvl, monkeypatch, error, code
):
    def checks():
        raise error

    monkeypatch.setattr("qvl_lab.show.doctor.checks", checks)
    result = qvl("doctor")
    assert result.code == code
    assert result.err == f"qvl-lab: cannot write /x/a.csv: {error.strerror}\n"


# ---- prices


def test_a_wrong_exchange_rate_is_refused_by_prices_and_report(qvl):
    price = '[[price]]\ngpu = "Z"\nprovider = "us"\nper_hour = 1\ncurrency = "CNY"\n'
    Path("own.toml").write_text(price + '[[rate]]\nfrom = "USD"\nto = "CNY"\nrate = 7\n')
    for line in ("prices --prices own.toml", "report r.jsonl --gpu Z --prices own.toml"):
        result = qvl(line)
        assert (result.code, result.out) in ((2, ""), (3, ""))
        if "report" not in line:
            assert "unknown field in rate 1 of own.toml 'from'" in result.err


def test_a_price_of_ones_own_keeps_its_currency(qvl, monkeypatch):
    asked = {}

    def report(runs, **options):
        asked.update(options)
        raise ConfigError("seen")

    monkeypatch.setattr("qvl_lab.show.report.render.report", report)
    Path("own.toml").write_text(
        '[[price]]\ngpu = "Z"\nprovider = "eu"\nper_hour = 1\ncurrency = "EUR"\n'
    )
    own = "report r.jsonl --prices own.toml"
    for line, currency in (
        (f"{own} --gpu Z", "EUR"),
        (f"{own} --gpu Z --currency CNY", "CNY"),
        (f"{own} --gpu A10G", None),
    ):
        assert qvl(line).err == "qvl-lab: seen\n"
        assert asked["currency"] == currency


@pytest.mark.parametrize("command", ["sweep --workload evaluation", "ablate --workload evaluation"])
def test_a_metric_for_a_task_that_is_not_there_is_refused(qvl, command):
    result = qvl(f"{command} --metric cuont=anls")
    assert (result.code, result.out) == (2, "")
    assert "unknown task of this workload 'cuont'. Did you mean 'count'" in result.err


# ---- the end


def test_sigterm_ends_the_work_says_so_and_exits_143(tmp_path):
    code = (
        "import sys, time; sys.argv = ['qvl-lab', 'sweep']\n"
        "import qvl_lab.bench.sweep as module\n"
        "def sweep(*_, **__):\n    print('up', flush=True); time.sleep(60)\n"
        "module.sweep = sweep\nfrom qvl_lab.cli import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "up\n"
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    assert time.monotonic() - started < 10
    assert said == "qvl-lab: terminated; finished work is kept, the same command goes on\n"
