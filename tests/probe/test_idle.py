"""Pauses of the GPU between stages."""

from __future__ import annotations

from qvl_lab.probe.idle import idle
from qvl_lab.probe.stages import Span


def span(path, start_s, end_s, on_gpu=True):
    return Span(path, start_s, end_s, start_s, end_s, on_gpu=on_gpu)


def test_a_pause_is_put_down_to_the_stage_that_took_most_of_it():
    found = idle(
        [
            span("preprocess", 0, 1, False),
            span("vision", 1, 2),
            span("vision/merger", 1.5, 2),
            span("prefill", 2, 3),
            span("decode", 3, 5),
            span("detokenize", 5, 5.5, False),
            span("decode_image", 5.5, 6, False),
            span("preprocess", 6, 7, False),
            span("preprocess", 7, 7.5, False),
            span("vision", 8, 9),
        ]
    )
    assert found.to_dict("records") == [
        {
            "start_s": 5,
            "seconds": 3,
            "meanwhile": "preprocess",
            "after": "decode",
            "before": "vision",
        }
    ]


def test_stages_that_overlap_leave_no_pause():
    found = idle([span("vision", 0, 4), span("prefill", 1, 2), span("decode", 3, 5)])
    assert found.empty
    found = idle([span("vision", 0, 4), span("prefill", 1, 2), span("decode", 4.5, 5)])
    assert found[["start_s", "seconds", "meanwhile"]].to_numpy().tolist() == [[4, 0.5, ""]]


def test_without_events_there_is_nothing_to_say():
    found = idle([span("vision", 0, 1, False), span("decode", 2, 3, False)])
    assert found.empty and "meanwhile" in found
