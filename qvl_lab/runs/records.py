"""What was measured: :class:`Run`, one configuration's result, and its JSON line.

A Run is the only object that passes between layers. It holds raw readings: every repeat, no
medians, no money. :mod:`qvl_lab.analysis.frame` turns runs into a table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from qvl_lab.config import ENGINES, RENAMED, default_of, digest, engines_with
from qvl_lab.errors import StoreError

#: Raised by one whenever the meaning of a field changes.
SCHEMA_VERSION = 1
#: ok: measured. oom: out of memory. error: the model or process failed.
#: skipped: not tried, because a smaller neighbour ran out of memory.
#: busy: not measurable here, because others used the machine whenever it was tried.
STATUSES = ("ok", "oom", "error", "skipped", "busy")
#: The parts of a batch's time, in order. What they leave over is "other".
STAGES = (
    "decode_image",
    "preprocess",
    "transfer",
    "vision",
    "prefill",
    "decode",
    "detokenize",
)
#: Stages within those, by path, as far as the engine marks them.
PARTS = (
    "vision/patch_embed",
    "vision/merger",
    "prefill/layers",
    "prefill/lm_head",
    "decode/layers",
    "decode/lm_head",
    "decode/sampling",
)
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "sampling_seed")
#: How tokens are chosen where a run does not say.
_GREEDY = {name: default_of(name) for name in _SAMPLING}
#: Counts of caches that had another name once.
_RENAMED_COUNTS = {
    "feature_hits": "encoder_hits",
    "feature_misses": "encoder_misses",
    "feature_bytes": "encoder_bytes",
    "feature_disk_hits": "encoder_disk_hits",
    "answer_hits": "response_hits",
    "answer_misses": "response_misses",
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much there was to compute, in the sums that formulas of FLOPs and bytes need.

    Attributes
    ----------
    images, batches : int
        Images that reached the model, forward passes that read a prompt.
    patches, patches_squared : int
        Patches of the vision tower, and their squares summed image by image.
    prompt_tokens, prompt_tokens_squared : int
        Tokens of the prompts without padding, and their squares summed prompt by prompt.
    padded_tokens, padded_tokens_squared : int
        The same as the engine runs them: every prompt as long as its batch's longest.
    decode_steps, decode_rows : int
        Forward passes of one token a row, and rows summed over them.
    context_tokens : int
        Tokens that those rows attend to, padding included, summed over steps and rows.
    """

    images: int = 0
    batches: int = 0
    patches: int = 0
    patches_squared: int = 0
    prompt_tokens: int = 0
    prompt_tokens_squared: int = 0
    padded_tokens: int = 0
    padded_tokens_squared: int = 0
    decode_steps: int = 0
    decode_rows: int = 0
    context_tokens: int = 0

    def __add__(self, other: Work) -> Work:
        sums = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        return Work(**sums)

    def __sub__(self, other: Work) -> Work:
        return self + Work(**{name: -value for name, value in asdict(other).items()})


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """One timed pass over the items, encoded bytes in, text out.

    ``stages_s`` sums seconds per stage over all batches, ``parts_s`` those of stages within a
    stage by their path ("vision/merger"). ``queue_s``, ``ttft_s`` and ``e2e_s`` have one value per
    answered item: from the start of the call, which hands over all its items, until work on the
    item starts, its first token is known, its answer is complete. In older files ``queue_s`` and
    ``e2e_s`` are empty, and ``ttft_s`` runs from the start of the item's batch or prefill.
    ``batch_s`` has one value per batch. ``work`` holds the fields of :class:`Work`; ``caches``
    hits, misses and bytes of the caches that were on. ``calls`` says how often the items were
    answered in one pass, so that it lasts long enough; all other fields are sums over them.
    ``round`` is the turn of the setting in which the pass was measured, each turn in a process of
    its own. ``disturbed`` says in words who else used the machine, "" if nobody did, None if
    nobody looked. Older files lack ``parts_s``, ``work``, ``caches``, ``round`` and ``disturbed``.
    """

    wall_s: float
    answered: int
    failed: int
    prompt_tokens: int
    visual_tokens: int
    new_tokens: int
    stages_s: dict[str, float]
    ttft_s: list[float]
    batch_s: list[float]
    parts_s: dict[str, float] = field(default_factory=dict)
    work: dict[str, int] = field(default_factory=dict)
    caches: dict[str, int] = field(default_factory=dict)
    queue_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)
    calls: int = 1
    round: int | None = None
    disturbed: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One configuration, measured or not.

    Attributes
    ----------
    key : str
        Names the configuration, the workload and the way of measuring; equal keys are
        comparable repeats of one thing.
    status, reason : str
        One of :data:`STATUSES`, and in words why it is not "ok".
    config, resolved : dict
        The settings as asked for, and what "auto" among them became.
    workload, plan : dict
        Name, fingerprint and counts of the items, with ``images`` that they ask about; repeats,
        warm-up, batches per pass.
    repeats : list of Repeat
        The raw readings.
    cold : dict
        Seconds of ``load_s`` and ``warmup_s``, kept apart from the repeats.
    memory : dict
        Peak bytes: ``allocated``, ``reserved``, ``process``, ``device``; None where unknown.
    power : dict
        Means over the timed passes: ``gpu_utilisation`` (0-1), ``power_w``; ``energy_j`` in all.
    contention : dict
        ``thrown_away``, how many passes were not kept since others used the machine, with the
        latest ``reason`` in words, and ``canary_s``, the best time of a fixed computation. Empty
        where nobody looked.
    round : int or None
        The turn that this run is, in a file where each turn is a line; None in a joined run and
        in older files.
    cache_state : str
        "off", "cold", "warm": whether image features were reused.
    architecture : dict
        The model's sizes, as :class:`qvl_lab.models.architecture.Architecture` reads them.
    environment : dict
        See :func:`qvl_lab.hardware.fingerprint`.
    failures : list of dict
        ``id`` and ``error`` of items without an answer.
    cut_answers : int or None
        Answers that ended because they had ``max_new_tokens`` tokens; None where nobody counted,
        or where random weights give every answer that length.
    scores : dict
        Task to metric and scores item by item, as
        ``TaskScores`` writes them; empty where no answer is known
        or the weights are random.
    answers : list of dict
        ``id``, ``task``, ``question``, ``expected``, ``answer`` and ``image_size`` (width and
        height in pixels, as the model saw it) of every item. A store keeps their texts in a
        file of their own, so a run that was read from a file has none.
    """

    key: str
    status: str
    reason: str | None = None
    started_at: str
    config: dict[str, Any]
    resolved: dict[str, Any] = field(default_factory=dict)
    workload: dict[str, Any]
    plan: dict[str, Any] = field(default_factory=dict)
    repeats: list[Repeat] = field(default_factory=list)
    cold: dict[str, float | None] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    power: dict[str, float | None] = field(default_factory=dict)
    contention: dict[str, Any] = field(default_factory=dict)
    round: int | None = None
    cache_state: str = "off"
    random_weights: bool | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    cut_answers: int | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    schema: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """One line without a line break."""
        text = json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))
        # lone surrogates (file names that are not UTF-8) become JSON escapes
        return text.encode("utf-8", "backslashreplace").decode()

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Read one line.

        Raises
        ------
        StoreError
            If it is no JSON, no Run, or of another schema version.
        """
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise StoreError(f"not a JSON line: {e}") from e
        if not isinstance(values, dict) or "schema" not in values:
            raise StoreError("not a run: the field 'schema' is missing")
        if values["schema"] != SCHEMA_VERSION:
            raise StoreError(
                f"schema version {values['schema']}, this qvl_lab reads {SCHEMA_VERSION}: "
                "read it with the version that wrote it, or measure again"
            )
        for name in (
            "config",
            "resolved",
            "workload",
            "plan",
            "environment",
            "scores",
            "contention",
        ):
            if not isinstance(values.get(name, {}), dict):
                raise StoreError(f"not a run: {name} is no object")
        if not all(isinstance(found, dict) for found in values.get("scores", {}).values()):
            raise StoreError("not a run: scores of a task are no object")
        missing = {"key", "status", "started_at", "config", "workload"} - set(values)
        unknown = set(values) - {f.name for f in fields(cls)}
        if missing or unknown:
            raise StoreError(f"not a run: missing {sorted(missing)}, unknown {sorted(unknown)}")
        try:
            _upgrade(values)
            repeats = [Repeat(**repeat) for repeat in values.pop("repeats", [])]
            usable = all(0 < repeat.wall_s < float("inf") for repeat in repeats)
        except TypeError as e:
            raise StoreError(f"not a run: {e}") from e
        if not usable:
            raise StoreError("not a run: a repeat without a positive wall_s")
        return cls(repeats=repeats, **values)


def _upgrade(values: dict[str, Any]) -> None:
    """Give what an older version wrote the form of today.

    Names are those of today. Settings of the engine that did not run are left out. The most likely
    token was taken where a run does not say, since there was no choice.
    """
    config = _renamed(values["config"], RENAMED)
    if (engine := config.get("engine")) in ENGINES:
        config = {n: v for n, v in config.items() if engine in engines_with(n)}
        config = {**_GREEDY, **config}
    values["config"] = config
    if (images := _images(values["workload"])) is not None:
        values["workload"] = {**values["workload"], "images": images}
    for repeat in values.get("repeats", []):
        if isinstance(repeat, dict) and isinstance(repeat.get("caches"), dict):
            repeat["caches"] = _renamed(repeat["caches"], _RENAMED_COUNTS)


def _images(workload: Mapping[str, Any]) -> int | None:
    """How many images a workload asks about; None where its run does not say.

    Older files count different pictures. Where requests repeat earlier ones on purpose, as the
    workload's name says, each brings an image of its own.
    """
    repeats = str(workload.get("name", "")).endswith("% repeated")
    images = workload.get("images", workload.get("items" if repeats else "unique_images"))
    return images if type(images) is int and images > 0 else None


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def joined(turns: Sequence[Run]) -> Run:
    """One run of all turns of a setting.

    Passes are kept in the order of their rounds; of a round that was measured twice, the later.
    Peaks are the highest, energy is summed. If any turn was measured, so was the setting; how it
    ended otherwise is told by the last turn, and a turn that failed by ``reason``.

    Parameters
    ----------
    turns : sequence of Run
        Of one key and environment, in the order in which they were written.
    """
    if any(run.round is None for run in turns):  # an older file: a line is a whole run
        return turns[-1]
    by_round = {run.round: run for run in turns if run.round is not None}
    visits = [by_round[number] for number in sorted(by_round)]
    measured = [run for run in visits if run.status == "ok"]
    if not measured:
        return replace(visits[-1], round=None, contention=_contention(visits))
    scored = next((run for run in measured if run.scores or run.answers), measured[0])
    failed = [run for run in visits if run.status in ("oom", "error")]
    of = f"{len(failed)} of {len(visits)} rounds failed: " if failed else ""
    return replace(
        scored,
        reason=of + str(failed[-1].reason) if failed else None,
        repeats=[repeat for run in measured for repeat in run.repeats],
        memory=_highest([run.memory for run in measured]),
        power=_power(measured),
        contention=_contention(visits),
        round=None,
    )


def _highest(peaks: Sequence[Mapping[str, int | None]]) -> dict[str, int | None]:
    known = {name: [peak.get(name) for peak in peaks] for name in peaks[0]}
    return {
        name: max((v for v in values if v is not None), default=None)
        for name, values in known.items()
    }


def _power(measured: Sequence[Run]) -> dict[str, float | None]:
    """Energy in all; utilisation and power as means over the turns."""
    merged: dict[str, float | None] = {}
    for name in measured[0].power:
        values = [run.power.get(name) for run in measured]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            merged[name] = None
        else:
            merged[name] = sum(known) / (1 if name == "energy_j" else len(known))
    return merged


def _contention(visits: Sequence[Run]) -> dict[str, Any]:
    seen = [run.contention for run in visits if run.contention]
    if not seen:
        return {}
    canaries = [c["canary_s"] for c in seen if c.get("canary_s") is not None]
    return {
        "thrown_away": sum(c.get("thrown_away", 0) for c in seen),
        "reason": next((c["reason"] for c in reversed(seen) if c.get("reason")), None),
        "canary_s": min(canaries, default=None),
    }


def environment_key(environment: Mapping[str, Any]) -> str:
    """Equal for environments whose numbers may stand in one table.

    Another machine of the same kind is the same environment; reports say how many took part,
    because work that waits for the CPU differs between them.
    """
    return digest({name: value for name, value in environment.items() if name != "host"})


def run_key(config: Mapping[str, Any], workload: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """The key of a configuration on a workload, measured by a plan."""
    return digest([dict(config), workload["fingerprint"], dict(plan), SCHEMA_VERSION])
