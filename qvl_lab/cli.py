"""The command ``qvl-lab``: one command per public function.

Exit codes: 0 done; 1 done, but some inputs failed (they are listed); 2 a setting or an input
cannot be used; 3 the model, the device or the run file failed; 4 the report stopped and is partial;
130 interrupted, finished work is kept.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from qvl_lab.config import BY_TASK, PRECISIONS, Config, SweepSpec
from qvl_lab.errors import ConfigError, InputError, QvlError, ReportError

if TYPE_CHECKING:
    from qvl_lab.runs.store import Runs
    from qvl_lab.workloads.items import Workload

SOME_FAILED, BAD_INPUT, CANNOT_RUN, PARTIAL_REPORT, INTERRUPTED = 1, 2, 3, 4, 130

app = typer.Typer(
    name="qvl-lab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Where the time, memory and money of a Qwen3-VL workload go, and what to run instead.",
)

Model = Annotated[
    str, typer.Option("--model", help="tiny, random:8b (2b, 4b, tiny, ...), a folder or a hub id.")
]
Precision = Annotated[str, typer.Option(help=f"One of {', '.join(PRECISIONS)}.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
BatchSize = Annotated[int, typer.Option(help="Images per forward pass.")]
Resolution = Annotated[
    str, typer.Option(help="native, by_task, or a side: 512 keeps at most 512 x 512 pixels.")
]
Tokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer in tokens.")]
Question = Annotated[
    str | None, typer.Option(help="Asked about every image that brings no question.")
]
Gpu = Annotated[str | None, typer.Option(help="GPU whose price is used; see 'qvl-lab prices'.")]
Provider = Annotated[str | None, typer.Option(help="Provider of the price.")]
Kind = Annotated[str | None, typer.Option(help="on_demand, spot or reserved.")]
PerHour = Annotated[
    float | None, typer.Option(help="Your own price per GPU hour, in --currency (CNY).")
]
Currency = Annotated[str | None, typer.Option(help="Currency of the result, such as CNY.")]
RateOption = Annotated[
    list[str] | None, typer.Option("--rate", help="Exchange rate to --currency: USD=7.1")
]
Utilisation = Annotated[
    float, typer.Option(help="Share of the paid GPU time that does this work, 0-1.")
]
PricesFile = Annotated[
    Path | None, typer.Option("--prices", help="TOML file with your own prices and rates.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other field, such as cache_implementation=static."),
]
TaskSide = Annotated[
    list[str] | None,
    typer.Option("--task-resolution", help="TASK=SIDE for --resolution by_task (repeatable)."),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option("--metric", help="TASK=METRIC for tasks of your own, invoice=anls (repeatable)."),
]
Items = Annotated[int | None, typer.Option(help="Use a sample of so many items.")]
TimedItems = Annotated[int | None, typer.Option(help="Time only so many of them; all are scored.")]
Batches = Annotated[int | None, typer.Option(help="At most so many batches a pass.")]
Quality = Annotated[bool, typer.Option(help="Score answers where the true one is known.")]
Repeats = Annotated[int, typer.Option(help="Timed passes.")]
Warmup = Annotated[int, typer.Option(help="Untimed batches before them.")]
Timeout = Annotated[float, typer.Option(help="Give a setting up after so long.")]
Isolation = Annotated[
    str, typer.Option(help="process: each setting in its own; none: all in this one.")
]
OnOtherEnvironment = Annotated[
    str, typer.Option(help="Rows of another machine or version: refuse, keep, fresh.")
]
RetryErrors = Annotated[bool, typer.Option(help="Measure failed settings again.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def _version(wanted: bool) -> None:
    if wanted:
        from qvl_lab import __version__

        print(f"qvl-lab {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: qvl-lab run photos/ --question '描述这张图片' --batch-size 8")
def run(
    source: Annotated[
        str,
        typer.Argument(help="A folder, CSV, JSONL, image, or a packaged set: evaluation, mixed."),
    ],
    model: Model = "tiny",
    precision: Precision = "auto",
    device: Device = "auto",
    revision: Revision = None,
    question: Question = None,
    task: Annotated[str | None, typer.Option(help="Task of items that name none.")] = None,
    batch_size: BatchSize = 8,
    resolution: Resolution = "native",
    task_resolution: TaskSide = None,
    max_new_tokens: Tokens = 64,
    set_: SetOption = None,
    metric: MetricOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use a sample of so many items.")] = None,
    gpu: Gpu = None,
    provider: Provider = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Answer a question about every image, and say what it took.

    Answers go to standard output as they come, one line each; the summary, with the scores where
    the workload has answers, and failed images go to standard error. Exit code 1 if an image
    failed.
    """
    from qvl_lab.analysis.quality.scoring import own_metrics
    from qvl_lab.backends.processor import Answer
    from qvl_lab.session import load
    from qvl_lab.workloads.sources import load_workload

    metrics = own_metrics(_pairs("--metric", metric))
    config = _config(
        {
            "model": model,
            "precision": precision,
            "device": device,
            "revision": revision,
            "batch_size": batch_size,
            "resolution": resolution,
            "max_new_tokens": max_new_tokens,
        },
        set_,
        task_resolution,
    )
    workload = load_workload(source, question=question, task=task).sample(limit)
    price = _price(gpu, provider) if gpu else None
    if workload.ignored:
        _note(f"ignored {len(workload.ignored)} other files: {_few(workload.ignored)}")
    lab = load(config.model)
    if lab.loaded.random_weights:
        _note(f"{model} has random weights: speed and memory are real, the answers are not")

    def show(_: int, answer: Answer) -> None:
        if as_json:
            print(json.dumps(asdict(answer), ensure_ascii=False), flush=True)
        elif answer.text is not None:
            print(f"{_one_line(answer.id)}\t{_one_line(answer.text)}", flush=True)

    result = lab.run(
        workload.items, config.engine, config.images, progress=not quiet, on_answer=show
    )
    failures = [*workload.errors, *result.errors]
    answered = len(result) - len(result.errors)
    summary: dict[str, Any] = {
        "answered": answered,
        "failed": len(failures),
        "wall_s": result.wall_s,
        "images_per_s": answered / result.wall_s if result.wall_s else None,
        "stages_s": result.stages_s,
        "events": result.events,
        "quality": None if lab.loaded.random_weights else _quality(workload, result.texts, metrics),
        "failures": failures,
    }
    if price and answered:
        cost = result.wall_s * price.per_hour / 3600 / answered * 100
        summary[f"cost_{price.currency.lower()}_per_100_images"] = cost
    _summarise(summary, as_json=as_json)
    if failures:
        raise typer.Exit(SOME_FAILED)


@app.command(epilog="Example: qvl-lab profile mixed --batch-size 8 --resolution 512 --out profile/")
def profile(
    source: Annotated[str, typer.Argument(help="As for run.")] = "mixed",
    model: Model = "tiny",
    precision: Precision = "auto",
    device: Device = "auto",
    revision: Revision = None,
    question: Question = None,
    batch_size: BatchSize = 8,
    resolution: Resolution = "native",
    task_resolution: TaskSide = None,
    max_new_tokens: Tokens = 16,
    set_: SetOption = None,
    batches: Annotated[int, typer.Option(min=1, help="Profile so many batches.")] = 2,
    kernels: Annotated[bool, typer.Option(help="Record operators and kernels.")] = True,
    snapshot: Annotated[
        bool, typer.Option(help="Also write a memory snapshot for PyTorch's viewer; CUDA only.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for tables and traces.")] = Path("profile"),
    quiet: Quiet = False,
) -> None:
    """Say where the time and the memory of a few batches go, after one that warms up.

    The stage table goes to standard output. The folder gets each table as CSV, a trace for
    Perfetto and one for TensorBoard (tensorboard --logdir FOLDER/tensorboard).
    """
    from contextlib import nullcontext

    from qvl_lab.bench.profile import profile as profiled
    from qvl_lab.probe import vram
    from qvl_lab.session import load
    from qvl_lab.workloads.sources import load_workload

    settings: dict[str, Any] = {"model": model, "precision": precision, "device": device}
    settings |= {"revision": revision, "batch_size": batch_size, "resolution": resolution}
    settings |= {"max_new_tokens": max_new_tokens}
    config = _config(settings, set_, task_resolution)
    items = load_workload(source, question=question).sample(batches * batch_size).items
    lab = load(config.model)
    lab.run(items, config.engine, config.images, max_batches=1)
    out.mkdir(parents=True, exist_ok=True)
    kept = vram.snapshot(out / "memory.pickle") if snapshot else nullcontext()
    with kept, profiled(lab, kernels=kernels, overhead=not snapshot) as found:
        lab.run(items, config.engine, config.images, progress=not quiet)
    print(found)
    for name in found.TABLES:
        getattr(found, name).to_csv(out / f"{name}.csv", index=False)
    if kernels:
        found.chrome(out / "trace.json.gz")
        found.tensorboard(out / "tensorboard", worker="qvl-lab")
    _note(f"tables and traces: {out}")


@app.command(
    epilog="Examples: qvl-lab sweep grid.toml --out runs.jsonl; "
    "qvl-lab sweep --model random:8b --batch-size 1,8,32 --resolution 256,512 "
    "--precision bf16,fp16 --out runs.jsonl"
)
def sweep(
    context: typer.Context,
    spec: Annotated[
        Path | None, typer.Argument(help="TOML file with the tables sweep, axes, fixed.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run file; the same command resumes it.")] = Path(
        "runs.jsonl"
    ),
    model: Annotated[str, typer.Option(help="One model or several, separated by commas.")] = "tiny",
    workload: Annotated[
        str, typer.Option(help="evaluation, mixed, a folder, a CSV or a JSONL file.")
    ] = "mixed",
    batch_size: Annotated[str, typer.Option(help="Values, separated by commas.")] = "1,2,4,8",
    resolution: Annotated[str, typer.Option(help="Values, separated by commas.")] = "128,256,512",
    precision: Annotated[str, typer.Option(help="Values, separated by commas.")] = "fp32,bf16",
    max_new_tokens: Tokens = 16,
    set_: SetOption = None,
    question: Question = None,
    items: Items = None,
    timed_items: TimedItems = None,
    batches: Batches = None,
    quality: Quality = True,
    metric: MetricOption = None,
    repeats: Repeats = 3,
    warmup: Warmup = 1,
    timeout_s: Timeout = 3600.0,
    isolation: Isolation = "process",
    on_other_environment: OnOtherEnvironment = "refuse",
    retry_errors: RetryErrors = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure every setting of a grid; run it again to resume.

    Out of memory is a result: the row is kept and larger settings are skipped. Exit code 3 if a
    setting failed for another reason.
    """
    from qvl_lab.bench.sweep import spec_from
    from qvl_lab.bench.sweep import sweep as run_sweep

    if spec:
        _refuse_beside_file(context)
    settings: dict[str, Any] = {"model": [model] if Path(model).exists() else _values(model)}
    grid = {"batch_size": batch_size, "resolution": resolution, "precision": precision}
    settings |= {name: _values(text) for name, text in grid.items()}
    settings |= {"max_new_tokens": max_new_tokens, "workload": workload, "question": question}
    settings |= {"items": items, "timed_items": timed_items, "batches": batches}
    settings |= {"repeats": repeats, "warmup": warmup}
    settings |= {"timeout_s": timeout_s, "isolation": isolation, "quality": quality}
    settings |= {"metrics": _pairs("--metric", metric)}
    settings |= {name: _values(text) for name, text in _pairs("--set", set_).items()}
    chosen = SweepSpec.from_toml(spec) if spec else spec_from(settings)
    runs = run_sweep(
        chosen,
        out=out,
        on_other_environment=on_other_environment,
        retry_errors=retry_errors,
        progress=not quiet,
    )
    _measured_settings(runs, out, as_json)


@app.command(
    epilog="Example: qvl-lab ablate --model random:8b --precision bf16 --workload photos/ "
    "--batch-size 32 --batches 2 --out ablation.jsonl"
)
def ablate(
    out: Annotated[Path, typer.Option(help="Run file; the same command resumes it.")] = Path(
        "ablation.jsonl"
    ),
    levers: Annotated[
        str | None,
        typer.Option(help="Fields to switch off, separated by commas. Left out: all that are on."),
    ] = None,
    model: Model = "tiny",
    workload: Annotated[
        str, typer.Option(help="evaluation, mixed, a folder, a CSV or a JSONL file.")
    ] = "mixed",
    batch_size: BatchSize = 8,
    resolution: Resolution = "native",
    task_resolution: TaskSide = None,
    precision: Precision = "auto",
    device: Device = "auto",
    max_new_tokens: Tokens = 16,
    set_: SetOption = None,
    question: Question = None,
    items: Items = None,
    timed_items: TimedItems = None,
    batches: Batches = None,
    quality: Quality = True,
    metric: MetricOption = None,
    repeats: Repeats = 3,
    warmup: Warmup = 1,
    timeout_s: Timeout = 3600.0,
    isolation: Isolation = "process",
    on_other_environment: OnOtherEnvironment = "refuse",
    retry_errors: RetryErrors = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what each lever of the fast engine is worth; run it again to resume.

    The stock engine stands beside the fast one with no lever, each lever alone, all but each, and
    all of them; 'qvl-lab report' draws them. Exit codes as of sweep.
    """
    from qvl_lab.bench.ablation import ablate as run_ablation

    settings: dict[str, Any] = {"model": model, "precision": precision, "device": device}
    settings |= {"batch_size": batch_size, "resolution": resolution}
    settings |= {"max_new_tokens": max_new_tokens}
    spec = SweepSpec(
        axes={},
        base=_config(settings, set_, task_resolution),
        workload=workload,
        question=question,
        items=items,
        timed_items=timed_items,
        batches=batches,
        repeats=repeats,
        warmup=warmup,
        timeout_s=timeout_s,
        quality=quality,
        metrics=_pairs("--metric", metric),
        isolation=isolation,
    )
    runs = run_ablation(
        spec,
        out=out,
        levers=None if levers is None else [name.strip() for name in levers.split(",")],
        on_other_environment=on_other_environment,
        retry_errors=retry_errors,
        progress=not quiet,
    )
    _measured_settings(runs, out, as_json)


@app.command(
    name="hit-rates",
    epilog="Example: qvl-lab hit-rates --model random:8b --precision bf16 --workload photos/ "
    "--rates 0,0.3,0.6,0.9 --cache-gib 24 --gpu H100 --out hits.jsonl",
)
def hit_rates(
    out: Annotated[Path, typer.Option(help="Run file; the same command resumes it.")] = Path(
        "hits.jsonl"
    ),
    rates: Annotated[
        str, typer.Option(help="Shares of requests that repeat, separated by commas.")
    ] = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    caches: Annotated[
        str, typer.Option(help="Caches to measure, separated by commas.")
    ] = "off,features,prefix,features+prefix,answers",
    cache_gib: Annotated[
        float, typer.Option(help="Memory of the features, and of the KV cache that keeps prefixes.")
    ] = 1.0,
    same_question: Annotated[
        bool, typer.Option(help="Repeat the question too, or ask another one about the image.")
    ] = True,
    model: Model = "tiny",
    workload: Annotated[
        str, typer.Option(help="evaluation, mixed, a folder, a CSV or a JSONL file.")
    ] = "evaluation",
    batch_size: BatchSize = 8,
    resolution: Resolution = "native",
    task_resolution: TaskSide = None,
    precision: Precision = "auto",
    device: Device = "auto",
    max_new_tokens: Tokens = 16,
    set_: SetOption = None,
    question: Question = None,
    items: Items = None,
    repeats: Repeats = 3,
    warmup: Warmup = 1,
    timeout_s: Timeout = 3600.0,
    isolation: Isolation = "process",
    on_other_environment: OnOtherEnvironment = "refuse",
    retry_errors: RetryErrors = False,
    images_held: Annotated[
        int, typer.Option(min=1, help="Images whose memory a cache has to pay for.")
    ] = 100,
    gpu: Gpu = None,
    provider: Provider = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what each cache saves at chosen hit rates; run it again to resume.

    Requests repeat earlier ones as often as each rate says. What was really hit is measured; a
    table says what it saved, and the hit rate from which each cache pays for its memory: a share
    of the priced GPU's, or else of the measured one's. Exit codes as of sweep.
    """
    from qvl_lab.bench.cache_savings import hit_rates as run_hit_rates

    settings: dict[str, Any] = {"model": model, "precision": precision, "device": device}
    settings |= {"batch_size": batch_size, "resolution": resolution}
    settings |= {"max_new_tokens": max_new_tokens}
    chosen, default = _config(settings, set_, task_resolution).flat(), Config().flat()
    price = _price(gpu, provider) if gpu else None
    runs = run_hit_rates(
        out=out,
        rates=[_number("--rates", rate) for rate in rates.split(",")],
        caches=[name.strip() for name in caches.split(",")],
        workload=workload,
        question=question,
        items=items,
        same_question=same_question,
        cache_gib=cache_gib,
        on_other_environment=on_other_environment,
        retry_errors=retry_errors,
        progress=not quiet,
        repeats=repeats,
        warmup=warmup,
        timeout_s=timeout_s,
        isolation=isolation,
        **{name: value for name, value in chosen.items() if value != default[name]},
    )
    if not as_json:
        _show_hits(runs, price, images_held)
    _measured_settings(runs, out, as_json)


def _show_hits(runs: Runs, price: Any, images: int) -> None:
    """What caches saved, and from which hit rate they pay, as a table."""
    from qvl_lab.analysis.levers.cache_savings import break_even
    from qvl_lab.analysis.money.cost import price as priced

    frame, column = runs.frame(), "s_per_100_images"
    if price:
        frame = priced(frame, price.gpu, price.provider, price.kind)
        column = f"cost_{price.currency.lower()}_per_100_images"
    try:
        table = break_even(frame, column=column, images=images)
    except ConfigError as e:
        _note(f"not compared: {e}")
        return
    print(f"{column} without a cache: {table.attrs['reference']:.4g}")
    names = ["cache", "highest_hit_rate", "highest_saving", "held_bytes", "memory_share"]
    print(table[[*names, "break_even", "claim_from"]].round(4).to_string(index=False))


def _measured_settings(runs: Runs, out: Path, as_json: bool) -> None:
    """Say what became of the settings and which items failed; leave with their exit code."""
    from qvl_lab.bench.sweep import engine_words

    counts = Counter(run.status for run in runs)
    if as_json:
        print(json.dumps({"out": str(out), "settings": len(runs), "statuses": counts}))
    else:
        print(f"{len(runs)} settings in {out}: {_counts(counts)}")
    for bad in (r for r in runs if r.status == "error"):
        c = bad.config
        named = ", ".join(filter(None, [c["precision"], str(c["resolution"]), engine_words(c)]))
        _note(f"failed: {named}: {bad.reason}")
    failures = {(f["id"], f["error"]) for run in runs for f in run.failures}
    for name, error in sorted(failures):
        _note(f"failed: {_one_line(name)}: {_one_line(error)}")
    if counts.get("error"):
        raise typer.Exit(CANNOT_RUN)
    if failures:
        raise typer.Exit(SOME_FAILED)


@app.command(
    epilog="Examples: qvl-lab report --model tiny; "
    "qvl-lab report runs.jsonl --gpu H200 --currency CNY --lang zh --out review"
)
def report(
    runs: Annotated[
        Path | None, typer.Argument(help="Run file of a sweep; without it --model is swept first.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Sweep this model over a small default grid first.")
    ] = None,
    workload: Annotated[str, typer.Option(help="Workload of that sweep.")] = "evaluation",
    items: Annotated[int, typer.Option(help="Items of that sweep.")] = 36,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("qvl-report"),
    gpu: Gpu = None,
    provider: Provider = None,
    kind: Kind = None,
    per_hour: PerHour = None,
    currency: Currency = None,
    rate: RateOption = None,
    prices_file: PricesFile = None,
    utilisation: Utilisation = 1.0,
    current: Annotated[
        list[str] | None, typer.Option(help="Today's setting: batch_size=1 (repeatable).")
    ] = None,
    monthly_images: Annotated[
        int | None, typer.Option(min=1, help="Images a month, for the monthly sum.")
    ] = None,
    min_quality: Annotated[
        float | None, typer.Option(help="Limit on quality, 0-1; today's less 0.02 if not given.")
    ] = None,
    max_vram_gib: Annotated[float | None, typer.Option(help="Limit on peak memory.")] = None,
    max_ttft_s: Annotated[float | None, typer.Option(help="Limit on time to first token.")] = None,
    ceilings: Annotated[
        Path | None, typer.Option(help="What the device can do at most, of doctor --ceilings.")
    ] = None,
    lang: Annotated[str, typer.Option(help="en or zh.")] = "en",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn a run file into one self-contained HTML page that a team can decide from.

    Leaves report.html, report.ipynb and settings.csv in the folder. Exit code 4 if the report
    stopped; what it had is kept.
    """
    from qvl_lab.show.report.render import default_sweep
    from qvl_lab.show.report.render import report as make_report

    if runs is None:
        runs = out / "runs.jsonl"
        default_sweep(model or "tiny", workload, runs, items=items, progress=not quiet)
    elif model:
        raise ConfigError("give a run file or --model, not both")
    files = make_report(
        runs,
        out=out,
        gpu=gpu,
        provider=provider,
        kind=kind,
        per_hour=per_hour,
        currency=currency,
        exchange_rates={k: _number("--rate", v) for k, v in _pairs("--rate", rate).items()},
        prices_file=prices_file,
        utilisation=utilisation,
        current={k: _values(v)[0] for k, v in _pairs("--current", current).items()},
        monthly_images=monthly_images,
        min_quality=min_quality,
        max_vram_gib=max_vram_gib,
        max_ttft_s=max_ttft_s,
        ceilings=ceilings,
        lang=lang,
    )
    names = {name: str(path) for name, path in asdict(files).items()}
    print(json.dumps(names) if as_json else f"report: {files.html.resolve()}")


@app.command(epilog="Example: qvl-lab prices --gpu A10G")
def prices(
    gpu: Gpu = None,
    prices_file: PricesFile = None,
    as_json: AsJson = False,
) -> None:
    """List the known GPU prices and exchange rates with their dates and sources."""
    from qvl_lab.analysis.money.cost import find_price, price_table, rates

    table = price_table(prices_file)
    if gpu:
        name = find_price(gpu, file=prices_file).gpu
        table = table[table["gpu"] == name]
    if as_json:
        known = [asdict(rate) for rate in rates(prices_file)]
        print(json.dumps({"prices": table.to_dict("records"), "rates": known}, ensure_ascii=False))
        return
    print(table.to_string(index=False))
    for rate in rates(prices_file):
        print(f"1 {rate.base} = {rate.rate:g} {rate.quote} ({rate.date}, {rate.source})")


@app.command(epilog="Examples: qvl-lab doctor --json; qvl-lab doctor --ceilings ceilings.json")
def doctor(
    as_json: AsJson = False,
    ceilings: Annotated[
        Path | None,
        typer.Option(
            help="Also measure what the device does at most, and write it to this file, which "
            "'qvl-lab report --ceilings' reads."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Say what this machine can do, and what is missing with how to get it."""
    from qvl_lab.show.doctor import checks

    found = checks()
    if ceilings:
        found.append(_measured(ceilings, device))
    if as_json:
        print(json.dumps([asdict(check) for check in found], ensure_ascii=False))
    else:
        for check in found:
            print(f"{'ok  ' if check.ok else 'miss'}  {check.name:<14}{check.detail}")
    if any(check.needed and not check.ok for check in found):
        raise typer.Exit(CANNOT_RUN)


def main() -> NoReturn:
    """Run the command and turn errors into a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what UTF-8 cannot
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED  # newer versions of typer return it themselves
    except ReportError as e:
        _fail(str(e), PARTIAL_REPORT)
    except (ConfigError, InputError) as e:
        _fail(str(e), BAD_INPUT)
    except QvlError as e:
        _fail(str(e), CANNOT_RUN)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as e:
        if not hasattr(e, "exit_code") or not hasattr(e, "show"):
            traceback.print_exc()
            _fail("this is a fault of qvl-lab; please report it with the lines above", CANNOT_RUN)
        e.show()  # a usage error of the command line itself
        sys.exit(e.exit_code)
    if code == INTERRUPTED:
        _fail("interrupted; finished work is kept, the same command goes on", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"qvl-lab: {message}", file=sys.stderr)
    sys.exit(code)


def _note(message: str) -> None:
    print(message, file=sys.stderr)


def _few(names: Any, most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{option} takes NAME=VALUE, not {text!r}")
        pairs[name] = value
    return pairs


def _config(
    settings: dict[str, Any], set_: list[str] | None, task_resolution: list[str] | None
) -> Config:
    settings |= {name: _values(text)[0] for name, text in _pairs("--set", set_).items()}
    if task_resolution:
        settings["task_resolutions"] = _pairs("--task-resolution", task_resolution)
    config = Config().replace(**settings)
    if task_resolution and config.images.resolution != BY_TASK:
        raise ConfigError("--task-resolution needs --resolution by_task")
    return config


def _measured(path: Path, device: str) -> Any:
    """Measure the ceilings of a device and write them."""
    from qvl_lab.config import ModelSpec
    from qvl_lab.models.load import resolve
    from qvl_lab.probe.ceilings import measure_ceilings, save_ceilings
    from qvl_lab.show.doctor import Check

    found = measure_ceilings(resolve(ModelSpec(device=device)).device)
    save_ceilings(found, path)
    rates = ", ".join(
        f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in found["flops_per_s"].items()
    )
    bandwidth = f"{found['bytes_per_s'] / 1e9:.3g} GB/s"
    launch = f"{1e6 * found['launch_s']:.2g} us a launch"
    return Check("ceilings", True, f"{found['device']}: {rates}, {bandwidth}, {launch}; {path}")


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option} takes a number, not {text!r}") from None


def _one_line(text: str) -> str:
    """Text without line breaks, tabs and terminal escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _refuse_beside_file(context: typer.Context) -> None:
    """Settings given beside a TOML file would be ignored, so they are refused."""
    about_the_run = {"spec", "out", "on_other_environment", "retry_errors", "as_json", "quiet"}
    given = [
        name.rstrip("_")
        for name in context.params
        if name not in about_the_run
        and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        names = ", ".join(sorted(given))
        raise ConfigError(f"a sweep file says it all; put these into it: {names}")


def _values(text: str) -> list[Any]:
    """Comma-separated values: numbers, true, false and none where they look like it."""
    words = {"none": None, "true": True, "false": False}
    result: list[Any] = []
    for part in text.split(","):
        part = part.strip()
        if part.lower() in words:
            result.append(words[part.lower()])
            continue
        try:
            result.append(int(part))
        except ValueError:
            try:
                result.append(float(part))
            except ValueError:
                result.append(part)
    return result


def _quality(
    workload: Workload, texts: list[str | None], metrics: dict[str, str]
) -> dict[str, dict[str, Any]] | None:
    """Task to metric, mean score and counts; None where no answer is known or scored."""
    from qvl_lab.analysis.quality.scoring import score_items

    try:
        scores = score_items(workload.items, texts, metrics)
    except ConfigError as e:
        _note(f"not scored: {e}")
        return None
    counts = ("metric", "mean", "count", "missing", "unparsed")
    return {task: {n: getattr(found, n) for n in counts} for task, found in scores.items()} or None


def _price(gpu: str, provider: str | None) -> Any:
    from qvl_lab.analysis.money.cost import find_price

    return find_price(gpu, provider)


def _summarise(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"summary": summary}, ensure_ascii=False))
        return
    _note(
        f"{summary['answered']} answered, {summary['failed']} failed, {summary['wall_s']:.2f} s, "
        f"{summary['images_per_s'] or 0:.2f} images/s"
    )
    stages = ", ".join(f"{name} {s:.2f}" for name, s in summary["stages_s"].items())
    _note(f"seconds by stage: {stages}")
    for name, value in summary.items():
        if name.startswith("cost_"):
            _note(f"{name}: {value:.4f}")
    for task, found in (summary["quality"] or {}).items():
        mean = "no answer" if found["mean"] is None else f"{found['mean']:.3f}"
        left_out = ", ".join(f"{found[n]} {n}" for n in ("missing", "unparsed") if found[n])
        rest = f"; {left_out}" if left_out else ""
        _note(
            f"quality: {_one_line(task)} {mean} ({found['metric']}, {found['count']} items{rest})"
        )
    for event in summary["events"]:
        _note(
            f"out of memory at batch {event['batch_size']}: went on with {event['continued_with']}"
        )
    for failure in summary["failures"]:
        _note(f"failed: {_one_line(failure['id'])}: {_one_line(failure['error'])}")


if __name__ == "__main__":
    main()
