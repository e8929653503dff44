"""The command line: help, exit codes, output for people and for programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

import qvl_lab
from qvl_lab.analysis.quality.metrics import METRICS
from qvl_lab.analysis.quality.scoring import score
from qvl_lab.cli.app import app
from qvl_lab.cli.output import one_line
from qvl_lab.errors import ReportError
from qvl_lab.runs.store import Runs, Store
from qvl_lab.show.report import sections
from qvl_lab.show.report.review import review
from qvl_lab.show.report.sections.first_page import change, first_line
from qvl_lab.workloads.resize import visual_tokens
from qvl_lab.workloads.sources import load_workload

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(typer.main.get_command(app).commands)
SMALL = "--device cpu --resolution 64 --max-new-tokens 2 --quiet"


def strict(text: str) -> Any:
    """Parse JSON as other languages do: NaN and Infinity are none."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# ---- help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(qvl, command):
    result = qvl(f"{command} --help")
    assert result.code == 0
    assert re.search(rf"Examples?: qvl-lab {command}\b", " ".join(result.out.split()))
    parameters = typer.main.get_command(app).commands[command].params
    assert [p.name for p in parameters if not getattr(p, "help", None)] == []
    assert [p.name for p in parameters if "[" in p.help] == []  # rich takes it for markup


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command):
    assert f"qvl-lab {command}" in (ROOT / "docs/shell.md").read_text("utf-8")


def test_without_a_command_the_help_is_shown(qvl):
    result = qvl("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)


def test_the_module_runs_as_a_command_and_knows_its_version():
    result = subprocess.run(
        [sys.executable, "-m", "qvl_lab", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, f"qvl-lab {qvl_lab.__version__}\n")


def test_help_imports_no_torch():
    code = "import sys; sys.argv = ['qvl-lab', 'run', '--help']\n"
    code += "from qvl_lab.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# ---- run


def test_answers_go_to_standard_output_and_the_rest_elsewhere(qvl, photos):
    result = qvl(f"run {photos}/red.png --model random:tiny {SMALL}")
    assert result.code == 0
    (line,) = result.out.splitlines()
    assert line.startswith("red.png\t")
    assert "1 answered, 0 failed" in result.err
    assert "random weights" in result.err
    assert "seconds by stage: decode_image" in result.err


def test_bad_images_are_named_and_the_exit_code_is_1(qvl, photos):
    result = qvl(f"run {photos} {SMALL}")
    assert result.code == 1
    answered = [line.split("\t")[0] for line in result.out.splitlines()]
    assert sorted(answered) == ["blue.png", "green.png", "red.png"]
    failed = re.findall(r"^failed: (\S+): (.+)$", result.err, re.MULTILINE)
    assert sorted(name for name, _ in failed) == ["bomb.png", "cut.jpg", "empty.png", "text.png"]
    assert "3 answered, 4 failed" in result.err
    assert "ignored 1 other files: notes.txt" in result.err


def test_json_is_one_object_a_line_with_the_summary_last(qvl, photos):
    result = qvl(f"run {photos} {SMALL} --json")
    *answers, last = [strict(line) for line in result.out.splitlines()]
    assert {a["id"]: a["error"] is None for a in answers} == {
        "red.png": True,
        "green.png": True,
        "blue.png": True,
        "cut.jpg": False,
        "text.png": False,
        "empty.png": False,
        "bomb.png": False,
    }
    summary = last["summary"]
    assert (summary["answered"], summary["failed"]) == (3, 4)
    assert len(summary["failures"]) == 4
    assert summary["images_per_s"] == pytest.approx(3 / summary["wall_s"])
    assert sum(summary["stages_s"].values()) == pytest.approx(summary["wall_s"], rel=0.02)


def test_a_price_gives_a_cost(qvl, photos):
    result = qvl(f"run {photos}/red.png {SMALL} --json --gpu A10G --provider article")
    summary = strict(result.out.splitlines()[-1])["summary"]
    assert summary["cost_cny_per_100_images"] == pytest.approx(summary["wall_s"] * 48 / 36)
    assert summary["cost_cny_per_100_answers"] == summary["cost_cny_per_100_images"]
    assert "the seconds are this CPU's and the price is that of A10G" in result.err
    assert "price: A10G article on demand, 48 CNY/h (undated)\n" in result.err
    assert "no provider was named" not in result.err


def test_images_with_several_questions_cost_more_than_an_answer(qvl, photos):
    rows = "".join(f"{photos}/red.png,What?{i}\n" for i in range(3))
    Path("three.csv").write_text(f"image,question\n{rows}")
    result = qvl(f"run three.csv {SMALL} --json --gpu H100")
    summary = strict(result.out.splitlines()[-1])["summary"]
    assert summary["cost_usd_per_100_answers"] == pytest.approx(summary["wall_s"] * 6.88 / 108)
    by_image = 3 * summary["cost_usd_per_100_answers"]
    assert summary["cost_usd_per_100_images"] == pytest.approx(by_image)
    assert "no provider was named, so that of aws is taken; 4 prices of H100 are" in result.err
    assert "known, 2.69 to 6.88 USD/h" in result.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run /no/such/folder", "/no/such/folder does not exist"),
        ("run mixd", "Did you mean 'mixed'"),
        ("run mixed --precision fp31", "Did you mean 'fp32'"),
        ("run mixed --resolution 0", "resolution must be"),
        ("run mixed --batch-size 0", "batch_size must be"),
        ("run mixed --limit -1", "limit"),
        ("run mixed --limit 0", "limit"),
        ("run mixed --gpu A1OG", "Did you mean 'A10G'"),
        ("run mixed --model tinny", "Did you mean 'tiny'"),
        ("run mixed --bach-size 3", "--bach-size"),
        ("run evaluation --metric colour", "--metric takes NAME=VALUE"),
        ("run evaluation --metric colour=anl", "unknown metric 'anl'. Did you mean 'anls'"),
        ("run evaluation --task-resolution locate=512", "needs --resolution by_task"),
        ("run evaluation --resolution by_task --task-resolution 5", "takes NAME=VALUE"),
        ("run evaluation --resolution by_task --task-resolution a=5", "a side from 32 to 16384"),
        ("run", "SOURCE"),
        ("rum", "rum"),
        ("sweep --batch-size 1,x --isolation none", "batch_size must be"),
        ("sweep --items 2 --batch-size 4", "more than the 2 timed items"),
        ("sweep --set batch_siz=3", "Did you mean 'batch_size'"),
        ("sweep --set nonsense", "--set takes NAME=VALUE"),
        ("sweep --metric nonsense", "--metric takes NAME=VALUE"),
        ("sweep --workload evaluation --metric colour=anl", "Did you mean 'anls'"),
        ("sweep none.toml", "cannot read none.toml"),
        ("ablate --levers pakcing", "Did you mean 'packing'"),
        ("ablate --set cache_implementation=static", "cache_implementation is the stock engine's"),
        ("ablate --batch-size 1 --levers batch_size", "lever batch_size is off"),
        ("hit-rates --rates 0,half", "--rates takes a number, not 'half'"),
        ("hit-rates --rates 1", "a hit rate must be from 0 to under 1"),
        ("hit-rates --caches off,feature", "Did you mean 'features'"),
        ("hit-rates --set prefix_cache=true", "prefix_cache is not a setting of hit_rates"),
        ("sweep --on-other-environment replace", "unknown choice"),
        ("report --gpu A10G none.jsonl --model tiny", "not both"),
        ("report --items 0 --model tiny", "items must be"),
        ("prices --gpu A1OG", "Did you mean 'A10G'"),
        ("prices --prices none.toml", "cannot read prices"),
    ],
)
def test_what_cannot_be_used_exits_2_and_says_why(qvl, tmp_path, line, words):
    result = qvl(line)
    assert result.code == 2
    assert words.lower() in result.err.lower()
    assert "Traceback" not in result.err
    assert result.out == ""
    assert list(tmp_path.glob("*.jsonl")) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run mixed --model /no/such/model", "/no/such/model does not exist"),
        ("run mixed --model nobody/nothing", "cannot load nobody/nothing"),
        ("report none.jsonl", "cannot read the run file none.jsonl"),
    ],
)
def test_what_cannot_run_exits_3(qvl, line, words):
    result = qvl(line)
    assert result.code == 3
    assert words in result.err
    assert "Traceback" not in result.err


SCORED = "run evaluation --limit 6 --device cpu --resolution 128 --max-new-tokens 40 --quiet"


def test_answers_are_scored_where_the_true_ones_are_known(qvl):
    result = qvl(SCORED)
    assert result.code == 0
    said = dict(line.split("\t") for line in result.out.splitlines())
    items = load_workload("evaluation").sample(6).items
    texts = [one_line(said[one_line(item.id)]) for item in items]
    scores = score([i.task for i in items], texts, [i.reference for i in items])
    lines = [line for line in result.err.splitlines() if line.startswith("quality: ")]
    assert lines == [
        f"quality: {task} {found.mean:.3f}"
        + (f", normalised {found.normalised_mean:.3f}" * (found.normalised != found.values))
        + f" ({found.metric}, 1 items"
        + ("; 1 unparsed" if found.unparsed else "")
        + ")"
        for task, found in scores.items()
    ]
    assert len(lines) == 6
    assert "random weights" not in result.err


def test_scores_are_in_the_json_summary_by_the_metrics_asked_for(qvl):
    result = qvl(f"{SCORED} --json --metric COLOUR=chrf --metric locate=iou")
    *answers, last = [strict(line) for line in result.out.splitlines()]
    quality = last["summary"]["quality"]
    metrics = {task: found["metric"] for task, found in quality.items()}
    assert metrics == {
        **dict.fromkeys(("count", "read_large", "read_small", "total"), "exact_match"),
        **{"colour": "chrf", "locate": "iou"},
    }
    items = {item.id: item for item in load_workload("evaluation").items}
    for answer in answers:
        item = items[answer["id"]]
        value = METRICS[metrics[item.task]](answer["text"], item.reference)
        found = quality[item.task]
        assert found["mean"] == pytest.approx(value, abs=1e-6)
        assert (found["count"], found["missing"]) == (1, 0)


@pytest.mark.parametrize("source", ["photos/red.png", "mixed --limit 1 --model random:tiny"])
def test_what_has_no_true_answer_or_random_weights_is_not_scored(qvl, photos, source):
    result = qvl(f"run {source} {SMALL}")
    assert result.code == 0
    assert not re.search("quality|scored", result.err)
    summary = strict(qvl(f"run {source} {SMALL} --json").out.splitlines()[-1])
    assert summary["summary"]["quality"] is None


def test_a_task_of_ones_own_is_answered_and_told_how_to_be_scored(qvl, photos):
    table = photos / "items.csv"
    table.write_text("image,answer,task\nred.png,red,tint\ncut.jpg,green,tint\n")
    unscored = qvl(f"run {table} {SMALL}")
    assert unscored.code == 1  # an image is damaged
    assert len(unscored.out.splitlines()) == 1
    assert "not scored: nothing says how answers of task 'tint' are scored" in unscored.err
    assert "quality:" not in unscored.err
    scored = qvl(f"run {table} {SMALL} --metric tint=anls")
    assert re.search(r"^quality: tint \S+ \(anls, 2 items; 1 missing\)$", scored.err, re.MULTILINE)


def test_each_task_may_have_its_resolution(qvl):
    sides = {"locate": 64, "colour": 96, "count": "native"}
    tables = " ".join(f"--task-resolution {task}={side}" for task, side in sides.items())
    line = SCORED.replace("--resolution 128", f"--resolution by_task {tables}")
    result = qvl(f"{line} --json")
    assert result.code == 1
    *answers, last = [strict(row) for row in result.out.splitlines()]
    items = {item.id: item for item in load_workload("evaluation").items}
    for answer in answers:
        item = items[answer["id"]]
        if item.task in sides:
            assert answer["visual_tokens"] == visual_tokens(item.image, sides[item.task])
        else:
            assert f"unknown task '{item.task}'" in answer["error"]
    assert len(last["summary"]["failures"]) == 3
    total = {"metric": "exact_match", "mean": 0.0, "count": 1, "missing": 1, "unparsed": 0}
    assert last["summary"]["quality"]["total"] == total | {"normalised_mean": None}


def test_ctrl_c_exits_130_and_promises_nothing_that_is_not_kept(qvl, photos, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("qvl_lab.session.Lab.run", interrupt)
    result = qvl(f"run {photos} {SMALL}")
    assert result.code == 130
    assert result.err.endswith("qvl-lab: interrupted\n")
    assert "Traceback" not in result.err
    monkeypatch.setattr("qvl_lab.bench.sweep.sweep", interrupt)
    result = qvl(SWEEP)
    assert result.code == 130
    assert "interrupted; finished work is kept, the same command goes on" in result.err


# ---- sweep


SWEEP = (
    "sweep --workload photos --batch-size 1,2 --resolution 64 --precision fp32 --max-new-tokens 2 "
    "--repeats 1 --isolation none --quiet --set device=cpu"
)


@pytest.mark.slow
def test_a_sweep_writes_its_rows_and_counts_them(qvl, photos, tmp_path):
    result = qvl(SWEEP)
    assert result.code == 1  # photos holds four files that cannot be used
    assert result.out == "2 settings in runs.jsonl: 2 ok\n"
    named = re.findall(r"^failed: (\S+):", result.err, re.MULTILINE)
    assert named == ["bomb.png", "cut.jpg", "empty.png", "text.png"]
    assert [run.config["batch_size"] for run in Runs.load(tmp_path / "runs.jsonl")] == [1, 2]
    again = qvl(f"{SWEEP} --json")
    assert strict(again.out) == {"out": "runs.jsonl", "settings": 2, "statuses": {"ok": 2}}


@pytest.fixture
def text_model(tmp_path) -> Path:
    """A folder with a model of another kind."""
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    return tmp_path / "bert"


@pytest.mark.slow
def test_failed_settings_exit_3_and_are_named(qvl, photos, text_model):
    result = qvl(f"{SWEEP} --model tiny,{text_model}")
    assert result.code == 3
    assert result.out == "4 settings in runs.jsonl: 2 error, 2 ok\n"
    for size in (1, 2):
        assert f"failed: fp32, 64 px, batch {size}: {text_model} is a 'bert' model" in result.err


def test_a_model_that_is_not_there_is_refused_before_anything_is_measured(qvl, photos):
    for command in (SWEEP, ABLATE, HITS):
        line = command.replace("album", "photos")
        result = qvl(f"{line} --model tinny")
        assert (result.code, result.out) == (2, "")
        assert "Did you mean 'tiny'" in result.err
        assert qvl(f"{line} --model /no/such/model").code == 3
    assert not list(Path().glob("*.jsonl"))


@pytest.mark.slow
def test_a_sweep_scores_unless_told_not_to(qvl, photos):
    for name in ("cut.jpg", "text.png", "empty.png", "bomb.png", "notes.txt"):
        (photos / name).unlink()
    rows = [f"{color}.png,{color},tint" for color in ("red", "green", "blue")]
    (photos / "items.csv").write_text("\n".join(["image,answer,task", *rows]))
    line = SWEEP.replace("photos", "photos/items.csv").replace("1,2", "3")
    refused = qvl(line)
    assert refused.code == 2
    assert "task 'tint'" in refused.err
    assert "--no-quality" in refused.err
    assert not Path("runs.jsonl").exists()
    assert qvl(f"{line} --no-quality").code == 0
    (run,) = Runs.load("runs.jsonl")
    assert (run.status, run.plan["quality"], run.scores) == ("ok", False, {})
    assert not Path("runs.answers.jsonl").exists()
    assert qvl(f"{line} --metric tint=chrf").code == 0
    _, run = Runs.load("runs.jsonl")
    assert run.plan["metrics"] == {"tint": "chrf"}
    assert (run.scores["tint"]["metric"], len(run.scores["tint"]["values"])) == ("chrf", 3)
    assert Runs.load("runs.jsonl").answers()["expected"].tolist() == ["red", "green", "blue"]


def test_out_of_memory_is_a_result_and_exits_0(qvl, photos, monkeypatch):
    def measure(job, get_lab=None):
        return job.result("oom", "made to be")

    monkeypatch.setattr("qvl_lab.bench.measure.measure", measure)
    result = qvl(f"{SWEEP} --json")
    assert result.code == 0
    assert strict(result.out)["statuses"] == {"oom": 1, "skipped": 1}


def test_a_run_file_of_another_environment_exits_3_and_names_the_choices(qvl, photos, on_cpu):
    with Store("runs.jsonl") as store:
        store.append(on_cpu(environment={"torch": "1.0"}))
    result = qvl(SWEEP)
    assert result.code == 3
    for choice in ("--on-other-environment keep", "--on-other-environment fresh"):
        assert choice in result.err
    assert qvl(f"{SWEEP} --on-other-environment fresh").code == 1
    assert Path("runs.1.jsonl").exists()


def test_a_sweep_ends_with_its_results_and_what_to_do_next(qvl, photos):
    result = qvl(SWEEP.replace("--quiet ", ""))
    head, first, second = result.err.splitlines()[-4:-1]
    assert head.split() == ["setting", "images/s", "process", "GiB"]
    assert {"fp32, 64 px, batch 1", "fp32, 64 px, batch 2"} == {
        line.strip().rsplit(maxsplit=2)[0] for line in (first, second)
    }
    assert result.err.endswith("next: qvl-lab report runs.jsonl\n")


# ---- ablate


ABLATE = (
    "ablate --workload photos --batch-size 3 --resolution 64 --precision fp32 --max-new-tokens 2 "
    "--repeats 2 --isolation none --quiet --device cpu"
)


@pytest.mark.slow
def test_an_ablation_writes_its_rows_and_the_report_shows_it(qvl, photos):
    result = qvl(f"{ABLATE} --levers packing,overlap")
    assert result.code == 1  # photos holds four files that cannot be used
    assert result.out == "6 settings in ablation.jsonl: 6 ok\n"
    named = re.findall(r"^failed: (\S+):", result.err, re.MULTILINE)
    assert named == ["bomb.png", "cut.jpg", "empty.png", "text.png"]
    page = sections.ablation(review("ablation.jsonl", per_hour=36.0))
    command = re.search("```\n(.*)\n```", page[-1].data, re.DOTALL)[1].replace("\\\n", "")
    before = Path("ablation.jsonl").read_bytes()
    again = qvl(command.removeprefix("qvl-lab ") + " --json")
    # the same settings: nothing is measured again
    assert strict(again.out) == {"out": "ablation.jsonl", "settings": 6, "statuses": {"ok": 6}}
    assert Path("ablation.jsonl").read_bytes() == before
    more = qvl(f"{ABLATE} --levers batch_size --out ablation.jsonl")
    assert more.out == "4 settings in ablation.jsonl: 4 ok\n"
    assert len(Runs.load("ablation.jsonl")) == 7


@pytest.mark.slow
def test_failed_variants_are_named_by_what_they_do_without(qvl, photos, text_model):
    result = qvl(f"{ABLATE} --levers packing --model {text_model}")
    assert result.code == 3
    assert f"failed: fp32, 64 px, batch 3, fast without packing: {text_model} is" in result.err


# ---- hit-rates


HITS = (
    "hit-rates --workload album --rates 0,0.5 --caches off,features,prefix --resolution 64 "
    "--batch-size 1 --precision fp32 --max-new-tokens 2 --cache-gib 0.1 --repeats 2 "
    "--isolation none --quiet --device cpu"
)


@pytest.fixture
def album(tmp_path) -> Path:
    """Four different pictures."""
    (tmp_path / "album").mkdir()
    for i in range(4):
        Image.new("RGB", (96, 64), (60 * i, 0, 90)).save(tmp_path / "album" / f"{i}.png")
    return tmp_path / "album"


@pytest.mark.slow
def test_hit_rates_are_measured_and_shown_with_what_they_save(qvl, album):
    result = qvl(f"{HITS} --gpu A10G --provider article")
    assert result.code == 0
    first, head, *rows, last = result.out.splitlines()
    assert first.startswith("cost_cny_per_100_images without a cache: 0.")
    assert head.split()[:3] == ["cache", "highest_hit_rate", "highest_saving"]
    assert [row.split()[:2] for row in rows] == [["features", "0.5"], ["prefix", "0.5"]]
    assert last == "6 settings in hits.jsonl: 6 ok"
    before = Path("hits.jsonl").read_bytes()
    again = qvl(f"{HITS} --json")
    assert strict(again.out) == {"out": "hits.jsonl", "settings": 6, "statuses": {"ok": 6}}
    assert Path("hits.jsonl").read_bytes() == before


@pytest.mark.slow
def test_hit_rates_without_uncached_rows_are_measured_and_not_compared(qvl, album):
    result = qvl(f"{HITS} --rates 0.5 --caches features")
    assert (result.code, result.out) == (0, "1 settings in hits.jsonl: 1 ok\n")
    assert "not compared: nothing was measured without a cache" in result.err


# ---- report


def test_report_passes_its_options_on(qvl, monkeypatch):
    from qvl_lab.show.report.render import ReportFiles

    asked: dict[str, Any] = {}

    def report(runs, **options):
        asked.update(options, runs=runs)
        return ReportFiles(Path("a.html"), Path("a.ipynb"), Path("a.csv"), {"saving": 0.6})

    monkeypatch.setattr("qvl_lab.show.report.render.report", report)
    result = qvl(
        "report r.jsonl --gpu A10G --rate USD=7.1 --current batch_size=1 --current precision=fp32 "
        "--monthly-images 5 --peak-hour-images 3 --lang zh --out review --min-quality 0.9 --json"
    )
    assert result.code == 0
    files = {"html": "a.html", "notebook": "a.ipynb", "csv": "a.csv"}
    assert strict(result.out) == files | {"headline": {"saving": 0.6}}
    assert asked["exchange_rates"] == {"USD": 7.1}
    assert asked["current"] == {"batch_size": 1, "precision": "fp32"}
    assert (asked["runs"], asked["out"]) == (Path("r.jsonl"), Path("review"))
    assert (asked["monthly_images"], asked["lang"], asked["gpu"]) == (5, "zh", "A10G")
    assert (asked["min_quality"], asked["peak_hour_images"]) == (0.9, 3)


@pytest.fixture
def scored_runs(on_cpu) -> str:
    """A run file: 10 s and 200 of 200 right one by one; 4 s and 180 right, 2 s and 100 right in
    batches of four at half the pixels.
    """
    cells = [(1, 10.0, 512, 10), (4, 4.0, 256, 9), (4, 2.0, 128, 5)]
    with Store("scored.jsonl") as store:
        for size, seconds, side, right in cells:
            values = ([1.0] * right + [0.0] * (10 - right)) * 20
            told = {"colour": {"metric": "exact_match", "values": values, "unparsed": 0}}
            known = {"scores": told, "random_weights": False, "resolution": side}
            store.append(on_cpu(size, seconds, **known))
    return "scored.jsonl"


@pytest.fixture
def reported(qvl, scored_runs, monkeypatch) -> Callable[[str], tuple[Any, Any]]:
    """Run the command; instead of the notebook, return the page that it would show."""

    def run(options: str) -> tuple[Any, Any]:
        asked: dict[str, Any] = {}
        monkeypatch.setattr(
            "qvl_lab.show.report.render._execute", lambda _, given: asked.update(given)
        )
        monkeypatch.setattr("qvl_lab.show.report.render.to_html", lambda *_, **__: None)
        result = qvl(f"report {scored_runs} --per-hour 36 {options}")
        return result, review(asked["runs"], **asked["options"]) if asked else None

    return run


@pytest.mark.parametrize(
    ("options", "side", "limit"),
    [("", "512", 0.98), ("--min-quality 0.9", "256", 0.9), ("--min-quality 0.5", "128", 0.5)],
)
def test_a_limit_on_quality_changes_the_recommendation(reported, options, side, limit):
    result, page = reported(options)
    assert result.code == 0
    assert page.recommendation.best["resolution"] == side
    assert page.recommendation.min_quality == pytest.approx(limit)
    assert "No measured setting reaches" not in first_line(page)


def test_a_quality_out_of_reach_is_said_with_the_best_there_is(reported, on_cpu):
    with Store("scored.jsonl") as store:  # today's loses one, too
        values = ([1.0] * 9 + [0.0]) * 20
        told = {"colour": {"metric": "exact_match", "values": values, "unparsed": 0}}
        known = {"scores": told, "random_weights": False, "resolution": 512}
        store.append(on_cpu(1, 10.0, **known))
    result, page = reported("--min-quality 0.95")
    assert result.code == 0
    assert first_line(page) == (
        "No measured setting reaches a quality of 0.95; the best has 0.90. "
        + change(page, page.recommendation)
    )
    assert page.recommendation.best["resolution"] == "256"


def test_a_limit_on_quality_in_percent_is_refused(reported):
    result, page = reported("--min-quality 95")
    assert result.code == 2
    assert "min_quality must be a number from 0 to 1, not 95" in result.err
    assert page is None


def test_a_report_that_stops_exits_4(qvl, monkeypatch):
    def report(*_, **__):
        raise ReportError("the report stopped: cell 3: what it had is in review/report.html")

    monkeypatch.setattr("qvl_lab.show.report.render.report", report)
    result = qvl("report r.jsonl")
    assert result.code == 4
    assert "what it had is in review/report.html" in result.err


# ---- prices and doctor


def test_prices_name_date_and_source(qvl):
    result = qvl("prices --gpu A10G")
    assert result.code == 0
    assert "48.0" in result.out
    assert "the article behind this project" in result.out
    assert "H100" not in result.out
    table = strict(qvl("prices --json").out)
    assert {"gpu", "provider", "per_hour", "currency", "date", "source"} <= set(table["prices"][0])
    assert all(rate["date"] and rate["source"] for rate in table["rates"])
    assert {"url", "region", "gpus_per_machine", "note", "age_days"} <= set(table["prices"][0])


def test_prices_mark_what_is_old_undated_or_doubtful(qvl):
    result = qvl("prices --gpu L4")
    (aws,) = (line for line in result.out.splitlines() if re.match(r"\s*L4\s+aws\s", line))
    assert re.search(r"2025-11-30\s+\d+ days old\s+us-east-1\s+4 GPUs", aws)
    assert "https://deploybase.ai/articles/runpod-gpu-pricing" in result.out
    assert "rented as a whole" in result.out
    assert "undated 1;" in result.err
    assert re.search(r"\(2026-01-08, \d+ days old, China", result.out)


def test_prices_of_ones_own_come_first(qvl):
    Path("own.toml").write_text(
        '[[price]]\ngpu = "Z100"\nprovider = "us"\nper_hour = 1.5\ncurrency = "CNY"\n'
    )
    first = strict(qvl("prices --prices own.toml --json").out)["prices"][0]
    assert (first["gpu"], first["per_hour"], first["date"]) == ("Z100", 1.5, "undated")


def test_the_doctor_says_what_is_there(qvl):
    result = qvl("doctor")
    assert result.code == 0
    assert re.search(r"^ok\s+torch\s+2\.", result.out, re.MULTILINE)
    checks = {check["name"]: check for check in strict(qvl("doctor --json").out)}
    assert checks["transformers"]["ok"] is True
    assert {"nvml", "cuda", "torchao", "chinese font", "disk"} <= set(checks)


def test_the_doctor_fails_where_something_needed_is_missing(qvl, monkeypatch):
    from qvl_lab.show import doctor

    here = doctor.fingerprint() | {"transformers": None}
    monkeypatch.setattr(doctor, "fingerprint", lambda: here)
    result = qvl("doctor")
    assert result.code == 3
    assert re.search(r"^miss\s+transformers\s+pip install transformers", result.out, re.MULTILINE)


def test_settings_beside_a_sweep_file_are_refused_not_ignored(qvl, tmp_path):
    (tmp_path / "grid.toml").write_text("[axes]\nbatch_size = [1]\n")
    result = qvl("sweep grid.toml --repeats 5 --model tiny --out runs.jsonl")
    assert result.code == 2
    assert "model, repeats" in result.err
    assert not (tmp_path / "runs.jsonl").exists()


@pytest.mark.parametrize("rate", ["USD=abc", "usd=7"])
def test_a_rate_that_cannot_be_used_is_refused(qvl, rate, tmp_path):
    result = qvl(f"report {ROOT / 'reports/h200-8b/runs.jsonl'} --out r --rate {rate}")
    assert result.code == 2
    assert "abc" in result.err or "usd" in result.err
    assert not (tmp_path / "r").exists()
