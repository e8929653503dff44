"""A grid of configurations over one workload, and TOML files to keep it in."""

from __future__ import annotations

import itertools
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from qvl_lab.config.backends import BACKENDS
from qvl_lab.config.checks import bounded, check_name, member, positive
from qvl_lab.config.settings import FIELDS, Config, digest, engines_with, wrong_engine
from qvl_lab.errors import ConfigError

ON_BUSY = ("wait", "keep", "ignore")


def default_on_busy() -> str:
    """What a sweep does beside other programs, unless it is told."""
    return os.environ.get("QVL_LAB_ON_BUSY", "wait")


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A grid of configurations over one workload, and how to measure each.

    Parameters
    ----------
    axes : mapping of str to sequence
        Field name to the values it takes; the grid is their product.
    base : Config
        The fields that do not vary.
    workload : str, Path or Workload
        A packaged set, a folder, a CSV or a JSONL file; or a workload in hand.
    question : str, optional
        Asked about every image that brings no question of its own.
    items : int, optional
        Use only this many items (a seeded sample). None uses all of them.
    timed_items : int, optional
        Time only this many of them (a seeded sample, the same for every setting). If quality is
        measured, one more pass that is not timed answers all items.
    batches : int, optional
        Time at most this many batches per repeat, for long grids: small batches then see
        fewer items. Fair only if the items are alike.
    repeats : int
        Timed passes of a setting, at least: settings take turns in rounds, and a turn has one
        pass. With process isolation each turn is in a process of its own.
    max_repeats : int
        Passes at most. Rounds go on until the 95% interval of each setting reaches no further than
        ``half_width`` to either side, or until another setting with the same answers (of the same
        model, resolution and precision) is surely faster.
    half_width : float
        See ``max_repeats``; 0.05 is 5%.
    budget_s : float, optional
        Begin no further round after so many seconds, once each setting had ``repeats``.
    min_pass_s : float
        A pass lasts at least so long: the items are answered again and again until it does.
    on_busy : str
        What to do with a pass beside which others used the machine: ``"wait"`` throws it away and
        tries again a few times, and a setting without any quiet pass has the status "busy";
        ``"keep"`` tries again once and at once, and then keeps it, marked as disturbed;
        ``"ignore"`` does not look. By default what the environment variable ``QVL_LAB_ON_BUSY``
        says, for machines that always have neighbours, else ``"wait"``.
    warmup : int
        Whether to run untimed passes before a timed one: whole passes, so that every shape occurs,
        until two in a row agree or ten seconds have gone by. 0 is without. With a ``min_pass_s``
        of 0, so many batches instead, the largest first.
    seed : int
        Seeds the sample of items.
    timeout_s : float
        A configuration that takes longer is given up (process isolation only).
    quality : bool
        Score the answers of items whose answer is known. Random weights are never scored.
    metrics : mapping of str to str or callable
        Task to metric, for tasks of your own; see ``metric_for``. A function is called with an
        answer and the expected one, both texts, and gives a score from 0 to 1, as in
        ``metrics={"invoice": my_function}``. It is called in this process, with either isolation.
    isolation : str
        ``"process"``: each configuration in a process of its own, so that a crash stays there and
        memory peaks start from nothing. ``"none"``: all in this process.
    """

    axes: Mapping[str, Sequence[Any]]
    base: Config = field(default_factory=Config)
    workload: Any = "mixed"  # the class Workload belongs to a layer above this one
    question: str | None = None
    items: int | None = None
    timed_items: int | None = None
    batches: int | None = None
    repeats: int = 3
    max_repeats: int = 10
    half_width: float = 0.05
    budget_s: float | None = None
    min_pass_s: float = 2.0
    on_busy: str = field(default_factory=default_on_busy)
    warmup: int = 1
    seed: int = 0
    timeout_s: float = 3600.0
    quality: bool = True
    metrics: Mapping[str, str | Callable[[str, str], float]] = field(default_factory=dict)
    isolation: str = "process"

    def __post_init__(self) -> None:
        for name, values in self.axes.items():
            check_name(name, FIELDS)
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(f"axis {name} needs a list of values, not {values!r}")
        bounded("repeats", self.repeats, 1, 1000)
        bounded("max_repeats", self.max_repeats, 1, 1000)
        bounded("warmup", self.warmup, 0, 1000)
        positive("half_width", self.half_width)
        if self.min_pass_s != 0:
            positive("min_pass_s", self.min_pass_s)
        if self.budget_s is not None:
            positive("budget_s", self.budget_s)
        member("on_busy", self.on_busy, ON_BUSY)
        for name in ("items", "timed_items", "batches"):
            if getattr(self, name) is not None:
                bounded(name, getattr(self, name), 1, 10**9)
        positive("timeout_s", self.timeout_s)
        member("quality", self.quality, (True, False))
        if not isinstance(self.metrics, Mapping):
            raise ConfigError(f"metrics must map tasks to metrics, not {self.metrics!r}")
        for metric in self.metrics.values():
            if not isinstance(metric, str) and not callable(metric):
                raise ConfigError(f"a metric is a name or a function, not {metric!r}")
        member("isolation", self.isolation, ("process", "none"))
        self.configurations()

    def configurations(self) -> list[Config]:
        """The grid, model by model, so that a loaded model is used for all of its settings.

        Settings that a point's engine does not have are left out, and equal points fall together.
        """
        part_order = ("model", "images", "engine")
        names = sorted(self.axes, key=lambda name: part_order.index(FIELDS[name]))
        engines = self.axes.get("engine", [self.base.engine.engine])
        for name in names:
            if not set(engines_with(name)) & set(engines) and set(engines) <= set(BACKENDS):
                raise wrong_engine(name)
        configs = []
        for values in itertools.product(*(self.axes[name] for name in names)):
            point = dict(zip(names, values, strict=True))
            engine = point.get("engine", self.base.engine.engine)
            configs.append(
                self.base.replace(
                    **{n: v for n, v in point.items() if n == "engine" or engine in engines_with(n)}
                )
            )
        return list({digest(c.flat()): c for c in configs}.values())

    @classmethod
    def grid(
        cls, fixed: Mapping[str, Any], axes: Mapping[str, Sequence[Any]], **options: Any
    ) -> Self:
        """A sweep from settings that are fixed and settings that vary, by their flat names.

        Where ``engine`` varies, a fixed setting that not every engine has becomes an axis of one
        value, for the engines that have it.
        """
        own = {
            name: [value]
            for name, value in fixed.items()
            if "engine" in axes and len(engines_with(name)) < len(BACKENDS)
        }
        base = Config().replace(**{n: v for n, v in fixed.items() if n not in own})
        return cls(axes={**axes, **own}, base=base, **options)

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read tables ``[sweep]``, ``[axes]`` and, for fixed fields, ``[fixed]``.

        Raises
        ------
        ConfigError
            If the file is missing, not TOML, or names an unknown table or field.
        """
        try:
            tables = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as e:
            raise ConfigError(f"cannot read {path}: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path} is not valid TOML: {e}") from e
        for table in tables:
            member("table", table, ("sweep", "axes", "fixed"))
            if not isinstance(tables[table], dict):
                raise ConfigError(f"{table} in {path} must be a table, [{table}]")
        options = dict(tables.get("sweep", {}))
        allowed = {f.name for f in fields(cls)} - {"axes", "base"}
        for name in options:
            member("sweep option", name, allowed)
        return cls.grid(tables.get("fixed", {}), tables.get("axes", {}), **options)

    def to_toml(self) -> str:
        """The same sweep as TOML text; fields at their defaults are left out.

        Raises
        ------
        ConfigError
            If an axis holds None or a metric is a function, which TOML cannot say, or the workload
            is not named by a path or the name of a packaged set.
        """
        import tomli_w

        if not isinstance(self.workload, str | Path):
            name = getattr(self.workload, "name", type(self.workload).__name__)
            raise ConfigError(
                f"workload {name!r} is in memory, which TOML cannot say; save its images and name "
                "the folder, a CSV or a JSONL file, or a packaged set"
            )
        for task, metric in self.metrics.items():
            if callable(metric):
                raise ConfigError(
                    f"the metric of task {task!r} is a function, which TOML cannot say; name one"
                )
        for name, values in self.axes.items():
            if None in values:
                raise ConfigError(f"axis {name} holds None, which TOML cannot say; name a value")
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        del options["axes"], options["base"]
        options["workload"] = str(self.workload)
        defaults = {f.name: f.default for f in fields(self)} | {"metrics": {}}
        defaults["on_busy"] = default_on_busy()
        default_fields = Config().replace(engine=self.base.engine.engine).flat()
        default_fields["engine"] = Config().engine.engine
        tables = {
            "sweep": {k: v for k, v in options.items() if v is not None and v != defaults[k]},
            "axes": {name: list(values) for name, values in self.axes.items()},
            "fixed": {k: v for k, v in self.base.flat().items() if v != default_fields[k]},
        }
        return tomli_w.dumps({name: table for name, table in tables.items() if table})
