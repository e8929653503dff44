"""``qvl-lab sweep``, ``ablate``, ``hit-rates``, ``profile``: measurements."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl_lab.analysis.setting_words import in_words
from qvl_lab.cli.app import app
from qvl_lab.cli.options import (
    Gpu,
    OnBusy,
    Out,
    PlanOptions,
    Provider,
    Question,
    Quiet,
    ResumeOptions,
    ScoringOptions,
    SetOption,
    SettingOptions,
    Tokens,
    WorkloadOptions,
    check_writable,
    grouped,
    number,
    pairs,
    several,
    single,
)
from qvl_lab.cli.output import CANNOT_RUN, SOME_FAILED, counts_in_words, note, note_failures
from qvl_lab.cli.run import load, load_lab
from qvl_lab.config import SweepSpec, default_of
from qvl_lab.errors import ConfigError
from qvl_lab.models.names import check_name

if TYPE_CHECKING:
    from qvl_lab.analysis.money.prices import Price
    from qvl_lab.runs.store import Runs


@app.command(
    epilog="Examples: qvl-lab sweep grid.toml --out runs.jsonl; "
    "qvl-lab sweep --model random:8b --batch-size 1,8,32 --resolution 256,512 "
    "--precision bf16,fp16 --out runs.jsonl"
)
@grouped()
def sweep(
    context: typer.Context,
    data: WorkloadOptions,
    scoring: ScoringOptions,
    plan: PlanOptions,
    resume: ResumeOptions,
    spec: Annotated[
        Path | None, typer.Argument(help="TOML file with the tables sweep, axes, fixed.")
    ] = None,
    out: Out = Path("runs.jsonl"),
    model: Annotated[str, typer.Option(help="One model or several, separated by commas.")] = "tiny",
    batch_size: Annotated[str, typer.Option(help="Values, separated by commas.")] = "1,2,4,8",
    resolution: Annotated[str, typer.Option(help="Values, separated by commas.")] = "128,256,512",
    precision: Annotated[str, typer.Option(help="Values, separated by commas.")] = "fp32,bf16",
    max_new_tokens: Tokens = 64,
    set_: SetOption = None,
) -> None:
    """Measure every setting of a grid; run it again to resume.

    Out of memory is a result: the row is kept and larger settings are skipped. Exit code 3 if a
    setting failed for another reason.
    """
    from qvl_lab.bench.planning import spec_from
    from qvl_lab.bench.sweep import sweep as run_sweep

    if spec:
        _refuse_beside_file(context)
        chosen = SweepSpec.from_toml(spec)
    else:
        axes = {"model": model, "batch_size": batch_size, "resolution": resolution}
        axes |= {"precision": precision, **pairs("--set", set_)}
        settings = {"max_new_tokens": max_new_tokens, **data.settings()}
        settings |= scoring.settings() | plan.settings()
        chosen = spec_from(settings | {name: several(name, text) for name, text in axes.items()})
    for named in chosen.axes.get("model", [chosen.base.model.model]):
        check_name(named)
    _check_tasks(chosen)
    _report(run_sweep(chosen, out=out, **resume.settings()), out, resume)


@app.command(
    epilog="Example: qvl-lab confirm runs.jsonl --current batch_size=1 --current precision=bf16"
)
def confirm(
    runs: Annotated[Path, typer.Argument(help="Run file of a sweep; the rounds join it.")],
    workload: Annotated[
        str | None, typer.Option(help="What the sweep answered; by default what its rows name.")
    ] = None,
    current: Annotated[
        list[str] | None, typer.Option(help="Today's setting: batch_size=1 (repeatable).")
    ] = None,
    min_quality: Annotated[float | None, typer.Option(help="Limit on quality, 0-1.")] = None,
    max_vram_gib: Annotated[float | None, typer.Option(help="Limit on peak memory.")] = None,
    max_ttft_s: Annotated[
        float | None, typer.Option(help="Limit on the 95th percentile of the time to first token.")
    ] = None,
    half_width: Annotated[
        float, typer.Option(help="Wanted half-width of the saving's interval, as a share.")
    ] = 0.05,
    budget_s: Annotated[
        float | None,
        typer.Option(
            help="Begin no further round after so many seconds; twice as many while the saving is "
            "not known to 10%."
        ),
    ] = None,
    isolation: Annotated[str, typer.Option(help="process or none, as of sweep.")] = "process",
    on_busy: OnBusy = "wait",
    quiet: Quiet = False,
) -> None:
    """Measure today's setting, the best one and the runner-up once more, head to head.

    The cheapest of many settings is partly the luckiest; a report's headline rests on these rounds
    where they are there. Run it again to resume.
    """
    from qvl_lab.analysis.money.recommend import recommend
    from qvl_lab.bench.confirm import confirm as run_confirm

    choice: dict[str, Any] = {
        "min_quality": min_quality,
        "max_vram_gib": max_vram_gib,
        "max_ttft_s": max_ttft_s,
    }
    today = {name: single(name, text) for name, text in pairs("--current", current).items()}
    measured = run_confirm(
        runs,
        workload=workload,
        half_width=half_width,
        budget_s=budget_s,
        isolation=isolation,
        on_busy=on_busy,
        progress=not quiet,
        current=today or None,
        **choice,
    )
    print(repr(recommend(measured.frame(), current=today or None, **choice)))
    print(f"next: qvl-lab report {runs}")


@app.command(
    epilog="Example: qvl-lab ablate --model random:8b --precision bf16 --workload photos/ "
    "--batch-size 32 --batches 2 --out ablation.jsonl"
)
@grouped()
def ablate(
    setting: SettingOptions,
    data: WorkloadOptions,
    scoring: ScoringOptions,
    plan: PlanOptions,
    resume: ResumeOptions,
    out: Out = Path("ablation.jsonl"),
    levers: Annotated[
        str | None,
        typer.Option(help="Fields to switch off, separated by commas. Left out: all that are on."),
    ] = None,
) -> None:
    """Measure what each lever of the fast engine is worth; run it again to resume.

    The stock engine stands beside the fast one with no lever, each lever alone, all but each, and
    all of them; 'qvl-lab report' draws them. Exit codes as of sweep.
    """
    from qvl_lab.bench.ablation import ablate as run_ablation

    options = data.settings() | scoring.settings() | plan.settings()
    spec = SweepSpec(axes={}, base=setting.config("fast"), **options)
    check_name(spec.base.model.model)
    _check_tasks(spec)
    named = None if levers is None else [name.strip() for name in levers.split(",")]
    _report(run_ablation(spec, out=out, levers=named, **resume.settings()), out, resume)


@app.command(
    name="hit-rates",
    epilog="Example: qvl-lab hit-rates --model random:8b --precision bf16 --workload photos/ "
    "--rates 0,0.3,0.6,0.9 --cache-gib 24 --gpu H100 --out hits.jsonl",
)
@grouped(workload="evaluation")
def hit_rates(
    setting: SettingOptions,
    data: WorkloadOptions,
    plan: PlanOptions,
    resume: ResumeOptions,
    out: Out = Path("hits.jsonl"),
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
    images_held: Annotated[
        int, typer.Option(min=1, help="Images whose memory a cache has to pay for.")
    ] = 100,
    gpu: Gpu = None,
    provider: Provider = None,
) -> None:
    """Measure what each cache saves at chosen hit rates; run it again to resume.

    Requests repeat earlier ones as often as each rate says. What was really hit is measured; a
    table says what it saved, and the hit rate from which each cache pays for its memory: a share
    of the priced GPU's, or else of the measured one's. Exit codes as of sweep.
    """
    from qvl_lab.analysis.money.prices import find_price
    from qvl_lab.bench.cache_savings import hit_rates as run_hit_rates

    chosen = setting.config("fast").flat()
    named = {n: v for n, v in chosen.items() if v != default_of(n) and (n, v) != ("engine", "fast")}
    check_name(chosen["model"])
    price = find_price(gpu, provider) if gpu else None
    runs = run_hit_rates(
        out=out,
        rates=[number("--rates", rate) for rate in rates.split(",")],
        caches=[name.strip() for name in caches.split(",")],
        same_question=same_question,
        cache_gib=cache_gib,
        **data.settings(),
        **plan.settings(),
        **resume.settings(),
        **named,
    )
    if not resume.as_json:
        _show_savings(runs, price, images_held)
    _report(runs, out, resume)


@app.command(epilog="Example: qvl-lab profile mixed --batch-size 8 --resolution 512 --out profile/")
@grouped()
def profile(
    setting: SettingOptions,
    source: Annotated[str, typer.Argument(help="As for run.")] = "mixed",
    question: Question = None,
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

    config = setting.config()
    check_name(config.model.model)
    check_writable(out, folder=True)
    items = (
        load(source, question, model=config.model.model)
        .sample(batches * config.engine.most_at_once)
        .items
    )
    lab = load_lab(config.model, quiet=quiet)

    from qvl_lab.bench.profile import profile as profiled
    from qvl_lab.probe import vram

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
    note(f"tables and traces: {out}")


def _check_tasks(spec: SweepSpec) -> None:
    """Refuse metrics for tasks that the workload has not, before a sample is drawn from it."""
    from qvl_lab.analysis.quality.scoring import check_tasks
    from qvl_lab.workloads.sources import load_workload

    if spec.metrics:
        check_tasks(spec.metrics, load_workload(spec.workload).items)


def _show_savings(runs: Runs, price: Price | None, images: int) -> None:
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
        note(f"not compared: {e}")
        return
    print(f"{column} without a cache: {table.attrs['reference']:.4g}")
    names = ["cache", "highest_hit_rate", "highest_saving", "held_bytes", "memory_share"]
    print(table[[*names, "break_even", "claim_from"]].round(4).to_string(index=False))


def _report(runs: Runs, out: Path, resume: ResumeOptions) -> None:
    """Say what became of the settings and which items failed; leave with their exit code."""
    counts = Counter(run.status for run in runs)
    if resume.as_json:
        print(json.dumps({"out": str(out), "settings": len(runs), "statuses": counts}))
    else:
        print(f"{len(runs)} settings in {out}: {counts_in_words(counts)}")
    for run in runs:
        if run.status == "error":
            note(f"failed: {in_words(run.config)}: {run.reason}")
    failures = {(f["id"], f["error"]) for run in runs for f in run.failures}
    note_failures(sorted(failures))
    if counts["ok"] and not resume.as_json and not resume.quiet:
        _note_results(runs)
        note(f"next: qvl-lab report {out}")
    if counts["error"]:
        raise typer.Exit(CANNOT_RUN)
    if failures:
        raise typer.Exit(SOME_FAILED)


def _note_results(runs: Runs, most: int = 12) -> None:
    """Speed and memory of the settings, the fastest first."""
    import pandas as pd

    frame = runs.frame()
    done = frame[frame["status"] == "ok"].sort_values("images_per_s", ascending=False)
    settings = {run.key: in_words(run.config) for run in runs}
    columns = {
        "setting": done["key"].map(settings),
        "images/s": done["images_per_s"].round(3),
        "process GiB": (done["peak_process_bytes"].astype(float) / 2**30).round(2),
    }
    table = pd.DataFrame(columns).dropna(axis=1, how="all")
    note(table.head(most).to_string(index=False))
    if len(table) > most:
        note(f"and {len(table) - most} slower settings")


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
