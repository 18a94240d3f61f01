"""The rows that rules look at: by hand."""

import numpy as np
import pytest
from histories import made_history

from tokenq.monitor.findings.tracks import (
    WINDOW,
    by_prompt,
    log_ratio,
    pair_track,
    response_track,
    sample_track,
    setup_of,
)
from tokenq.monitor.measures.registry import clusters_of
from tokenq.monitor.readings import History, ProbePair


def test_equal_prompts_are_one_row():
    prompts = clusters_of(pairs_of((1, 2), (3,), (1, 2), (4,)))

    assert prompts.tolist() == [0, 1, 0, 2]
    assert by_prompt(np.array([1.0, 5.0, 3.0, np.nan]), prompts).tolist() == [2.0, 5.0]
    assert by_prompt(np.full(4, np.nan), prompts).tolist() == []


def test_a_prompt_that_all_share_is_part_of_the_task():
    assert clusters_of(pairs_of((1, 2), (1, 2), (1, 2))).tolist() == [0, 1, 2]


def pairs_of(*prompts):
    return [ProbePair("held_out", row, prompt, [1], [2]) for row, prompt in enumerate(prompts)]


def test_a_run_without_a_probe_has_no_rows():
    with pytest.raises(ValueError, match="no probe"):
        setup_of(History(None, [], []))


def test_tracks_leave_out_the_start_and_other_pairs():
    history = made_history("displacement", steps=(0, 10, 20), pairs=6, responses=9, samples=0)
    setup = setup_of(history)

    held_out = pair_track(history, "held_out", lambda r: log_ratio(setup, r, 0))
    trained = pair_track(history, "train", lambda r: log_ratio(setup, r, 0), start=True)
    responses = response_track(history, lambda r: r.responses.log_ratio)

    assert held_out.steps == [10, 20]
    assert trained.steps == [0, 10, 20]
    np.testing.assert_array_equal(
        np.concatenate([held_out.rows[1], trained.rows[2]]),
        log_ratio(setup, history.readings[2], 0),
    )
    ratios = history.readings[1].responses.log_ratio
    expected = [
        (ratios[0] + ratios[6]) / 2,
        (ratios[1] + ratios[7]) / 2,
        (ratios[2] + ratios[8]) / 2,
    ]
    np.testing.assert_allclose(responses.rows[0], [*expected, *ratios[3:6]])


def test_samples_are_pooled_and_compared_prompt_by_prompt():
    steps = tuple(range(0, 70, 10))
    history = made_history(
        "length_drift", steps=steps, pairs=4, responses=6, samples=4, samples_every=1
    )
    setup = setup_of(history)

    def lengths(samples):
        return np.array([len(ids) for ids in samples.ids], dtype=float)

    track = sample_track(history, lengths, setup.baseline.response_tokens, scale=2.0)

    read = {reading.step: reading.samples for reading in history.readings}
    assert track.steps == [10, 20, 30, 40, 50, 60]
    for look, step in enumerate(track.steps):
        window = [read[s] for s in track.steps[max(0, look + 1 - WINDOW) : look + 1]]
        rows = []
        for pair in range(4):
            now = [len(s.ids[k]) for s in window for k in range(4) if s.pair[k] == pair]
            before = [len(r.ids) for r in setup.probe.responses if r.pair == pair]
            before += [len(read[0].ids[k]) for k in range(4) if read[0].pair[k] == pair]
            rows.append((np.mean(now) - np.mean(before)) / 2)
        np.testing.assert_allclose(track.rows[look], rows, err_msg=str(step))
