"""Options that commands share, and how their texts become values.

A group of options is a frozen dataclass. A command takes it as one parameter, and :func:`grouped`
spells the group out for typer, which wants one parameter per option.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from qvl_lab.config import BY_TASK, PRECISIONS, Config
from qvl_lab.errors import ConfigError

WORKLOADS = "evaluation, mixed, a folder, a CSV or a JSONL file."
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Gpu = Annotated[str | None, typer.Option(help="GPU whose price is used; see 'qvl-lab prices'.")]
Provider = Annotated[str | None, typer.Option(help="Provider of the price.")]
PricesFile = Annotated[
    Path | None, typer.Option("--prices", help="TOML file with your own prices and rates.")
]
Question = Annotated[
    str | None,
    typer.Option(
        help="Asked about every image that brings no question; without it: Describe this image."
    ),
]
OnBusy = Annotated[
    str,
    typer.Option(
        help="A pass beside other programs: wait, keep (and mark it), ignore.",
        envvar="QVL_LAB_ON_BUSY",
    ),
]
Tokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer in tokens.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other field, such as cache_implementation=static."),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option("--metric", help="TASK=METRIC for tasks of your own, invoice=anls (repeatable)."),
]
Out = Annotated[Path, typer.Option(help="Run file; the same command resumes it.")]


@dataclass(frozen=True)
class SettingOptions:
    """One setting: what to run, and how."""

    model: Annotated[
        str,
        typer.Option("--model", help="tiny, random:8b (2b, 4b, tiny, ...), a folder or a hub id."),
    ] = "tiny"
    precision: Annotated[str, typer.Option(help=f"One of {', '.join(PRECISIONS)}.")] = "auto"
    device: Device = "auto"
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = (
        None
    )
    batch_size: Annotated[
        str, typer.Option(help="Images at once; auto: 8, or what fits in the fast engine.")
    ] = "auto"
    resolution: Annotated[
        str, typer.Option(help="native, by_task, or a side: 512 keeps at most 512 x 512 pixels.")
    ] = "native"
    task_resolution: Annotated[
        list[str] | None,
        typer.Option("--task-resolution", help="TASK=SIDE for --resolution by_task (repeatable)."),
    ] = None
    max_new_tokens: Tokens = 64
    set_: SetOption = None

    def config(self, engine: str = "stock") -> Config:
        """The configuration that the options describe, of ``engine`` where they name none.

        Raises
        ------
        ConfigError
            If a value cannot be used.
        """
        names = ("model", "precision", "device", "revision", "resolution")
        settings = {name: getattr(self, name) for name in (*names, "max_new_tokens")}
        settings |= {"engine": engine, "batch_size": single("batch_size", self.batch_size)}
        settings |= {name: single(name, text) for name, text in pairs("--set", self.set_).items()}
        if self.task_resolution:
            settings["task_resolutions"] = pairs("--task-resolution", self.task_resolution)
        config = Config().replace(**settings)
        if self.task_resolution and config.images.resolution != BY_TASK:
            raise ConfigError("--task-resolution needs --resolution by_task")
        return config


@dataclass(frozen=True)
class WorkloadOptions:
    """Which images a measurement asks about."""

    workload: Annotated[str, typer.Option(help=WORKLOADS)] = "mixed"
    question: Question = None
    items: Annotated[int | None, typer.Option(help="Use a sample of so many items.")] = None

    def settings(self) -> dict[str, Any]:
        """As fields of a SweepSpec."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class ScoringOptions:
    """How many items are timed, and how answers are scored."""

    timed_items: Annotated[
        int | None, typer.Option(help="Time only so many of them; all are scored.")
    ] = None
    batches: Annotated[int | None, typer.Option(help="At most so many batches a pass.")] = None
    quality: Annotated[bool, typer.Option(help="Score answers where the true one is known.")] = True
    metric: MetricOption = None

    def settings(self) -> dict[str, Any]:
        """As fields of a SweepSpec."""
        plain = {name: getattr(self, name) for name in ("timed_items", "batches", "quality")}
        return plain | {"metrics": pairs("--metric", self.metric)}


@dataclass(frozen=True)
class PlanOptions:
    """How each setting is measured."""

    repeats: Annotated[
        int, typer.Option(help="Timed passes of a setting at least, taken in turns.")
    ] = 3
    max_repeats: Annotated[
        int, typer.Option(help="Passes at most; rounds go on until --half-width is reached.")
    ] = 10
    half_width: Annotated[
        float, typer.Option(help="Wanted half-width of a 95% interval, as a share.")
    ] = 0.05
    budget_s: Annotated[
        float | None, typer.Option(help="Begin no further round after so many seconds.")
    ] = None
    min_pass_s: Annotated[float, typer.Option(help="Least length of a pass in seconds.")] = 2.0
    on_busy: OnBusy = "wait"
    warmup: Annotated[int, typer.Option(help="Whether to warm up before a pass; 0 is not.")] = 1
    timeout_s: Annotated[float, typer.Option(help="Give a setting up after so long.")] = 3600.0
    isolation: Annotated[
        str, typer.Option(help="process: each setting in its own; none: all in this one.")
    ] = "process"

    def settings(self) -> dict[str, Any]:
        """As fields of a SweepSpec."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class ResumeOptions:
    """What becomes of the rows that a run file holds, and what is printed."""

    on_other_environment: Annotated[
        str, typer.Option(help="Rows of another machine or version: refuse, keep, fresh.")
    ] = "refuse"
    retry_errors: Annotated[bool, typer.Option(help="Measure failed settings again.")] = False
    as_json: AsJson = False
    quiet: Quiet = False

    def settings(self) -> dict[str, Any]:
        """As keywords of a sweep."""
        return {
            "on_other_environment": self.on_other_environment,
            "retry_errors": self.retry_errors,
            "progress": not self.quiet,
        }


@dataclass(frozen=True)
class PriceOptions:
    """What an hour of a GPU costs, in which currency."""

    gpu: Gpu = None
    provider: Provider = None
    kind: Annotated[str | None, typer.Option(help="on_demand, spot or reserved.")] = None
    per_hour: Annotated[
        float | None, typer.Option(help="Your own price per GPU hour, in --currency (CNY).")
    ] = None
    currency: Annotated[str | None, typer.Option(help="Currency of the result, such as CNY.")] = (
        None
    )
    rate: Annotated[
        list[str] | None, typer.Option("--rate", help="Exchange rate to --currency: USD=7.1")
    ] = None
    prices_file: PricesFile = None
    utilisation: Annotated[
        float, typer.Option(help="Share of the paid GPU time that does this work, 0-1.")
    ] = 1.0

    def settings(self) -> dict[str, Any]:
        """As keywords of a report."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rate"}
        given = pairs("--rate", self.rate)
        return plain | {"exchange_rates": {k: number("--rate", v) for k, v in given.items()}}


def grouped(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Spell out a command's groups of options for typer; ``defaults`` replace the groups' own."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        groups: dict[str, type] = {}
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(command).parameters.items():
            if is_dataclass(hints[name]):
                groups[name] = hints[name]
                parameters += _spelled_out(hints[name], defaults)
            else:
                plain = {"annotation": hints[name], "kind": inspect.Parameter.KEYWORD_ONLY}
                parameters.append(parameter.replace(**plain))

        @functools.wraps(command)
        def call(**given: Any) -> None:
            for name, group in groups.items():
                given[name] = group(**{f.name: given.pop(f.name) for f in fields(group)})
            command(**given)

        del call.__wrapped__  # type: ignore[attr-defined]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        return call

    return decorate


def _spelled_out(group: type, defaults: Mapping[str, Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(f.name, f.default),
            annotation=hints[f.name],
        )
        for f in fields(group)  # type: ignore[arg-type]
    ]


def pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    """The NAME=VALUE texts of a repeatable option."""
    found = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{option} takes NAME=VALUE, not {text!r}")
        found[name] = value
    return found


def number(option: str, text: str) -> float:
    """A number, or a ConfigError that names the option."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option} takes a number, not {text!r}") from None


def several(name: str, text: str) -> list[Any]:
    """The comma-separated values of a field: numbers, true, false and none where they look so.

    Paths may hold commas: a value of a field that names a folder is never split.
    """
    if name.endswith("_dir") or (name == "model" and Path(text).exists()):
        return [None if text.lower() == "none" else text]
    return [_value(part.strip()) for part in text.split(",")]


def single(name: str, text: str) -> Any:
    """The one value of a field.

    Raises
    ------
    ConfigError
        If there are several, which only a sweep takes.
    """
    values = several(name, text)
    if len(values) > 1:
        raise ConfigError(
            f"{name}={text} names {len(values)} values; give one here, or measure them all with "
            "'qvl-lab sweep'"
        )
    return values[0]


def _value(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def check_writable(path: Path, *, folder: bool) -> Path:
    """The path, if a file or a folder can be written there; nothing is made.

    Raises
    ------
    ConfigError
        If something else stands there, or the folder above it is closed.
    """
    if path.exists() and path.is_dir() != folder:
        raise ConfigError(f"cannot write {path}: it is {'no' if folder else 'a'} folder")
    above = path if path.exists() else next(p for p in path.absolute().parents if p.exists())
    if not path.exists() and not above.is_dir():
        raise ConfigError(f"cannot write {path}: {above} is no folder")
    if not os.access(above, os.W_OK | (os.X_OK if above.is_dir() else 0)):
        raise ConfigError(f"cannot write {path}: Permission denied")
    return path
