"""Findings in words: every rule has its sentences, with every piece of evidence in its place."""

from __future__ import annotations

import re

import pytest

from qvl_lab.analysis.limits.advice import Finding
from qvl_lab.show.locale import texts
from qvl_lab.show.report.finding_text import finding_sentences

#: One of each, with the evidence that the rules give.
FINDINGS = [
    Finding("preparing", {"share": 0.4, "stage": "preprocess", "stage_share": 0.3}, 1.67),
    Finding("preparing_beside", {"share": 0.4, "stage": "preprocess", "stage_share": 0.3}),
    Finding(
        "waiting_decode",
        {"step_ms": 42.0, "least_ms": 7.0, "rows": 8, "more": 32, "option": "cuda_graphs=true"},
        2.5,
    ),
    Finding("far_decode", {"step_ms": 42.0, "least_ms": 7.0, "rows": 8}, 2.5),
    Finding("reading_weights", {"bandwidth_share": 0.7, "rows": 2}),
    Finding("far_vision", {"times_slower": 4.0}, 1.3),
    Finding("far_prefill", {"times_slower": 3.0}, 1.2),
    Finding("far_vision_packed", {"times_slower": 4.0}, 1.3),
    Finding("far_prefill_packed", {"times_slower": 3.0}, 1.2),
    Finding("slow_patch_embedding", {"share": 0.5}, 1.25),
    Finding("at_limit", {"stage": "prefill", "mfu": 0.72, "share": 0.5}),
    Finding("padding", {"padded": 0.5}, 1.1),
    Finding("fp32", {"precision": "fp16"}, 3.0, measured=True),
    Finding("fast_engine", {}, 2.0, measured=True),
    Finding("larger_batch", {"rows": 4, "more": 16}, 1.5, measured=True),
    Finding("idle", {"busy": 0.55}),
    Finding("throttled", {"share": 0.6, "reason": "power cap"}),
    Finding("launching", {"stage": "decode", "share": 0.6, "kernels": 900, "mean_us": 5.5}),
    Finding("pausing", {"share": 0.45, "stage": "preprocess"}, 1.8),
]


def test_every_sentence_is_tried_here():
    rules = {key.removeprefix("finding_") for key in texts("en") if key.startswith("finding_")}
    worth = {f"{kind}_{unit}" for kind in ("most", "measured") for unit in ("times", "percent")}
    worth |= {"worth"}
    assert rules - worth == {finding.rule for finding in FINDINGS}


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding.rule)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_sentence_uses_all_its_evidence(finding, lang):
    template = texts(lang)[f"finding_{finding.rule}"]
    assert set(re.findall(r"{(\w+)}", template)) == set(finding.evidence)
    (said,) = finding_sentences([finding], lang)
    assert "{" not in said
    assert ("images per second" in said or "吞吐" in said) == (finding.gain is not None)


def test_shares_are_percent_and_gains_too_until_they_double():
    said = finding_sentences(FINDINGS)
    assert said[0].startswith("The GPU waits for 40% of the time")
    assert "preprocess (30%)" in said[0] and said[0].endswith(
        " (up to 67% more images per second)."
    )
    by_rule = dict(zip((finding.rule for finding in FINDINGS), said, strict=True))
    assert "42.0 ms a step against 7.0 possible" in by_rule["waiting_decode"]
    assert by_rule["waiting_decode"].endswith("(up to 2.5x the images per second).")
    assert by_rule["fp32"].endswith("(measured: 3.0x the images per second).")
    assert by_rule["larger_batch"].endswith("(measured: 50% more images per second).")


def test_chinese_findings_end_with_one_full_stop():
    for said in finding_sentences(FINDINGS, "zh"):
        assert said.endswith("。") and "。（" not in said and " (" not in said


def test_no_share_is_over_all_of_it():
    (said,) = finding_sentences(
        [Finding("at_limit", {"stage": "prefill", "mfu": 1.03, "share": 0.5})]
    )
    assert "computes at 100% of the device's rate" in said


def test_nothing_found_is_said():
    assert "Nothing measured" in finding_sentences([])[0]
    assert finding_sentences([], "zh") != finding_sentences([], "en")
