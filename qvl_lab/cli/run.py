"""``qvl-lab run``: answer a question about every image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl_lab.cli.app import app
from qvl_lab.cli.options import (
    AsJson,
    Gpu,
    MetricOption,
    Provider,
    Question,
    Quiet,
    SettingOptions,
    grouped,
    pairs,
)
from qvl_lab.cli.output import SOME_FAILED, few, note, note_failures, one_line
from qvl_lab.errors import ConfigError

if TYPE_CHECKING:
    from qvl_lab.analysis.money.prices import Price
    from qvl_lab.analysis.quality.metrics import Metric
    from qvl_lab.backends.base import Answer
    from qvl_lab.backends.generation import Generation
    from qvl_lab.session import Lab
    from qvl_lab.workloads.items import Workload


@app.command(
    epilog="Examples: qvl-lab run evaluation --limit 12; "
    "qvl-lab run receipts/ --question 'What is the total?' --batch-size 8"
)
@grouped()
def run(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, a table (.csv, .jsonl, .json), an image, or a packaged set: "
            "evaluation, mixed; evaluation+hints, mixed+hints say how to answer."
        ),
    ],
    setting: SettingOptions,
    question: Question = None,
    task: Annotated[str | None, typer.Option(help="Task of items that name none.")] = None,
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
    # all that can be refused is looked at before torch is imported, which takes seconds
    from qvl_lab.analysis.money.prices import find_price
    from qvl_lab.analysis.quality.scoring import check_tasks, own_metrics
    from qvl_lab.models.names import check_name

    metrics = own_metrics(pairs("--metric", metric))
    config = setting.config()
    check_name(config.model.model)
    workload = load(source, question, task, config.model.model)
    check_tasks(metrics, workload.items)
    workload = workload.sample(limit)
    price = find_price(gpu, provider) if gpu else None
    lab = load_lab(config.model, quiet=quiet)
    if lab.loaded.random_weights:
        note(f"{config.model.model} has random weights: speed and memory are real, the answers not")

    def show(_: int, answer: Answer) -> None:
        if as_json:
            print(json.dumps(asdict(answer), ensure_ascii=False), flush=True)
        elif answer.text is not None:
            print(f"{one_line(answer.id)}\t{one_line(answer.text)}", flush=True)

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
        "cut_answers": None
        if lab.loaded.random_weights
        else result.at_limit(config.engine.sampling.max_new_tokens),
        "quality": None if lab.loaded.random_weights else _quality(workload, result, lab, metrics),
        "failures": failures,
    }
    if price and answered:
        cost = price.of(result.wall_s) / answered * 100
        images = len(set(workload.contents))
        column = f"cost_{price.currency.lower()}_per_100"
        summary[f"{column}_images"] = cost * len(workload.items) / images
        summary[f"{column}_answers"] = cost
        _note_price(price, provider, lab.spec.device)
    if as_json:
        print(json.dumps({"summary": summary}, ensure_ascii=False))
    else:
        _summarise(summary)
    if failures:
        raise typer.Exit(SOME_FAILED)


def _note_price(price: Price, provider: str | None, device: str) -> None:
    """What the price is, what else is known, and whether it is that of what ran."""
    from qvl_lab.analysis.money.prices import age_said, alternatives, price_range

    age = "" if price.date == "undated" else age_said(price.date)  # the label says undated itself
    note(", ".join(filter(None, [f"price: {price.label}", age])))
    known = alternatives(price)
    if provider is None and len(known) > 1:
        note(
            f"no provider was named, so that of {price.provider} is taken; {len(known)} prices of "
            f"{price.gpu} are known, {price_range(known)}: --provider names one"
        )
    if not device.startswith("cuda"):
        note(
            f"the seconds are this CPU's and the price is that of {price.gpu}: read the cost as "
            "arithmetic, not as what that GPU would cost"
        )


def load(
    source: str, question: str | None, task: str | None = None, model: str | None = None
) -> Workload:
    """The workload; says which files were ignored, and which question is asked unasked for."""
    from qvl_lab.models.names import TINY
    from qvl_lab.workloads.items import DEFAULT_QUESTION
    from qvl_lab.workloads.sources import load_workload

    workload = load_workload(source, question=question, task=task)
    if workload.ignored:
        note(f"ignored {len(workload.ignored)} other files: {few(workload.ignored)}")
    if question is None and any(item.question == DEFAULT_QUESTION for item in workload.items):
        able = ", as tiny cannot describe: it names colours, counts, locates and reads"
        hint = able if model == TINY else ""
        note(f"the question is {DEFAULT_QUESTION!r}; --question asks another one{hint}")
    return workload


def load_lab(spec: Any, *, quiet: bool) -> Lab:
    """Load a model; quietly without transformers' progress bar."""
    from qvl_lab.models.load import quiet as without_bar
    from qvl_lab.session import load

    with without_bar(quiet):
        return load(spec)


def _quality(
    workload: Workload, answers: Generation, lab: Lab, metrics: Mapping[str, str | Metric]
) -> dict[str, dict[str, Any]] | None:
    """Task to metric, mean score and counts; None where no answer is known or scored."""
    from qvl_lab.bench.measure import scores_of

    try:
        scores = scores_of(answers, workload.items, lab, metrics)
    except ConfigError as e:
        note(f"not scored: {e}")
        return None
    counts = ("metric", "mean", "normalised_mean", "count", "missing", "unparsed")
    return {task: {n: getattr(found, n) for n in counts} for task, found in scores.items()} or None


def _summarise(summary: dict[str, Any]) -> None:
    note(
        f"{summary['answered']} answered, {summary['failed']} failed, {summary['wall_s']:.2f} s, "
        f"{summary['images_per_s'] or 0:.2f} images/s"
    )
    stages = ", ".join(f"{name} {s:.2f}" for name, s in summary["stages_s"].items())
    note(f"seconds by stage: {stages}")
    for name, value in summary.items():
        if name.startswith("cost_"):
            note(f"{name}: {value:.4f}")
    for task, found in (summary["quality"] or {}).items():
        mean = "no answer" if found["mean"] is None else f"{found['mean']:.3f}"
        left_out = ", ".join(f"{found[n]} {n}" for n in ("missing", "unparsed") if found[n])
        rest = f"; {left_out}" if left_out else ""
        if (said := found["normalised_mean"]) is not None and f"{said:.3f}" != mean:
            mean = f"{mean}, normalised {said:.3f}"
        note(f"quality: {one_line(task)} {mean} ({found['metric']}, {found['count']} items{rest})")
    if cut := summary["cut_answers"]:
        note(f"{cut} answers ended at the limit of tokens and may be cut off; --max-new-tokens")
    for event in summary["events"]:
        size, smaller = event["batch_size"], event["continued_with"]
        note(f"out of memory at batch {size}: went on with {smaller}")
    note_failures((failure["id"], failure["error"]) for failure in summary["failures"])
