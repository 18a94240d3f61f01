"""Localisation metrics against scikit-learn, scipy and numbers worked out by hand; the bootstrap
against one that copies the drawn responses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score

from tokenq.credit import localisation as loc
from tokenq.credit.localisation import Bootstrap, Marked, Metric, bootstrap

RANKING = [loc.auroc, loc.average_precision, loc.mean_auroc, loc.mean_average_precision]
FLAGS = [
    loc.span_f1,
    loc.span_iou,
    loc.mean_span_f1,
    loc.false_positive_rate,
    loc.detection_rate,
]


def responses(
    seed: int, count: int = 30, *, levels: int = 6, groups: int = 12, longest: int = 9
) -> list[Marked]:
    """Random scores with many ties; some responses all right, some all wrong, some mixed."""
    random = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        length = int(random.integers(1, longest + 1))
        scores = random.integers(0, levels, length) / 4
        truth = random.random(length) < random.choice([0.0, 0.3, 1.0])
        items.append(Marked(scores, truth, f"g{random.integers(groups)}"))
    return items


def pooled(items: list[Marked]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.concatenate([each.truth for each in items]),
        np.concatenate([each.scores for each in items]),
    )


marked = st.lists(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=8),
    min_size=1,
    max_size=8,
).map(lambda rows: [Marked([s for s, _ in r], [t for _, t in r], "g") for r in rows])


@settings(max_examples=200, deadline=None)
@given(marked)
def test_ranking_metrics_are_those_of_scikit_learn(items: list[Marked]) -> None:
    truth, scores = pooled(items)
    if truth.any():
        assert loc.average_precision(items) == pytest.approx(average_precision_score(truth, scores))
    else:
        assert np.isnan(loc.average_precision(items))
    if truth.any() and not truth.all():
        assert loc.auroc(items) == pytest.approx(roc_auc_score(truth, scores))
    else:
        assert np.isnan(loc.auroc(items))

    mixed = [each for each in items if each.truth.any() and not each.truth.all()]
    for metric, peer in (
        (loc.mean_auroc, roc_auc_score),
        (loc.mean_average_precision, average_precision_score),
    ):
        if mixed:
            expected = np.mean([peer(each.truth, each.scores) for each in mixed])
            assert metric(items) == pytest.approx(expected)
        else:
            assert np.isnan(metric(items))


@settings(max_examples=100, deadline=None)
@given(marked)
def test_overlap_metrics_are_those_of_scikit_learn(items: list[Marked]) -> None:
    flags = loc.flagged(items, 1)
    truth, scores = pooled(flags)
    if truth.any() or scores.any():
        assert loc.span_f1(flags) == pytest.approx(f1_score(truth, scores))
        assert loc.span_iou(flags) == pytest.approx(jaccard_score(truth, scores))
    each = [f1_score(one.truth, one.scores, zero_division=1.0) for one in flags]
    assert loc.mean_span_f1(flags) == pytest.approx(np.mean(each))


def test_numbers_worked_out_by_hand() -> None:
    items = [
        Marked([0.1, 0.9, 0.4], [False, True, False], "a"),  # found first
        Marked([0.8, 0.2, 0.8], [False, False, True], "b"),  # found in a tie of two
        Marked([0.7, 0.3], [False, False], "c"),  # nothing wrong
        Marked([0.6], [True], "d"),  # nothing right
    ]
    assert loc.top1_hit(items) == pytest.approx((1 + 0.5 + 1) / 3)
    # Wrong 0.9, 0.8, 0.6 against right 0.1, 0.4, 0.8, 0.2, 0.7, 0.3: 6 + 5.5 + 4 of 18 pairs.
    assert loc.auroc(items) == pytest.approx(15.5 / 18)
    # Precision 1/1 at 0.9, 2/3 at 0.8 (with its tie), 3/5 at 0.6.
    assert loc.average_precision(items) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert loc.mean_auroc(items) == pytest.approx((1 + 0.75) / 2)
    assert loc.mean_average_precision(items) == pytest.approx((1 + 1 / 2) / 2)

    flags = loc.flagged(items, 0.7)  # 1: hit; 2: hit and one too many; 3: one too many; 4: missed
    assert loc.span_f1(flags) == pytest.approx(4 / (4 + 2 + 1))
    assert loc.span_iou(flags) == pytest.approx(2 / 5)
    assert loc.mean_span_f1(flags) == pytest.approx((1 + 2 / 3 + 0 + 0) / 4)
    assert loc.false_positive_rate(flags) == 1
    assert loc.detection_rate(flags) == pytest.approx(2 / 3)
    # One score a response: wrong 0.9, 0.8, 0.6; right 0.7.
    assert loc.auroc(loc.largest(items)) == pytest.approx(2 / 3)


def test_correlations_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    items = []
    for at in range(20):
        truth = random.integers(-4, 5, 7).astype(float)
        items.append(Marked((truth + 2 * random.normal(size=7)).round(), truth, f"g{at}"))
    truth, scores = pooled(items)
    assert loc.pearson(items) == pytest.approx(stats.pearsonr(scores, truth).statistic)
    assert loc.spearman(items) == pytest.approx(stats.spearmanr(scores, truth).statistic)
    flat = [Marked([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], "g")]
    assert np.isnan(loc.pearson(flat))
    assert np.isnan(loc.spearman(flat))


@pytest.mark.parametrize(
    "metric", [*RANKING, loc.top1_hit, *FLAGS, loc.pearson, loc.spearman], ids=lambda m: m.name
)
def test_a_resample_is_the_metric_of_the_copied_responses(metric: Metric) -> None:
    seeds = [responses(1), responses(2)]
    if metric in FLAGS:
        seeds = [loc.flagged(items, 0.75) for items in seeds]
    if metric in (loc.pearson, loc.spearman):
        seeds = [
            [Marked(each.scores, each.truth + each.scores[0], each.group) for each in items]
            for items in seeds
        ]
    # Only as many groups as both seeds have in common are named by chance; give all of them.
    names = [f"g{at}" for at in range(12)]
    estimate = Bootstrap(names, resamples=150, seed=5)(seeds, metric)

    draws = np.random.default_rng(5).multinomial(12, [1 / 12] * 12, size=150)
    weights = [dict(zip(sorted(names), drawn, strict=True)) for drawn in draws]
    expected = [
        np.mean(
            [metric([each for each in items for _ in range(weight[each.group])]) for items in seeds]
        )
        for weight in weights
    ]
    np.testing.assert_allclose(estimate.draws, expected, rtol=1e-9, atol=1e-12)
    assert estimate.by_seed == pytest.approx([metric(items) for items in seeds], rel=1e-12)
    assert estimate.value == pytest.approx(np.mean(estimate.by_seed))
    assert estimate.low == pytest.approx(np.nanquantile(expected, 0.025))
    assert estimate.high == pytest.approx(np.nanquantile(expected, 0.975))


def test_the_interval_has_the_width_of_independent_groups() -> None:
    # 400 responses of one token with an error: the hit rate is a mean of coins.
    coins = np.random.default_rng(0).random(400) < 0.3
    items = [Marked([0.0, 1.0], [not hit, hit], f"g{at}") for at, hit in enumerate(coins)]
    share = coins.mean()
    estimate = bootstrap([items], loc.top1_hit, resamples=4000)
    half = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert estimate.value == share
    assert estimate.low == pytest.approx(share - half, abs=0.006)
    assert estimate.high == pytest.approx(share + half, abs=0.006)
    # Ten copies of each response in its group say nothing new; in groups of their own they would.
    copies = bootstrap([[each for each in items for _ in range(10)]], loc.top1_hit, resamples=4000)
    assert copies.high - copies.low == pytest.approx(estimate.high - estimate.low)


def test_differences_are_paired() -> None:
    random = np.random.default_rng(3)
    better = [
        Marked(random.normal(size=9), random.random(9) < 0.3, f"g{at % 60}") for at in range(200)
    ]
    worse = [Marked(each.scores - 0.05 * each.truth, each.truth, each.group) for each in better]
    draw = Bootstrap([each.group for each in better], resamples=400)
    first, second = draw([better, better], loc.auroc), draw([worse, worse], loc.auroc)
    difference = first.minus(second)
    assert difference.value == pytest.approx(first.value - second.value)
    np.testing.assert_allclose(difference.draws, first.draws - second.draws)
    assert difference.low > 0  # plain intervals overlap by far
    assert first.low < second.value
    other = Bootstrap([each.group for each in better], resamples=400)
    with pytest.raises(ValueError, match="one Bootstrap"):
        first.minus(other([worse, worse], loc.auroc))
    with pytest.raises(ValueError, match="as many seeds"):
        first.minus(draw([worse], loc.auroc))


def test_resamples_without_an_error_are_counted_and_left_out() -> None:
    items = [Marked([0.2, 0.9], [False, True], "a"), Marked([0.1, 0.3], [False, False], "b")]
    estimate = bootstrap([items], loc.auroc, resamples=2000)
    assert 400 < estimate.undefined < 600  # a is not drawn in a quarter of them
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)
    nothing = bootstrap([items[1:]], loc.auroc)
    assert (nothing.low, nothing.high, nothing.undefined) == (None, None, 1000)
    assert nothing.to_dict()["value"] is None


def test_the_best_threshold_is_found_by_trying_all() -> None:
    for seed in range(20):
        items = responses(seed, count=12)
        threshold = loc.best_f1_threshold(items)
        tried = [
            loc.span_f1(loc.flagged(items, each))
            for each in np.unique(np.concatenate([one.scores for one in items]))
        ]
        assert loc.span_f1(loc.flagged(items, threshold)) == pytest.approx(max(tried))
    with pytest.raises(ValueError, match="no token is wrong"):
        loc.best_f1_threshold([Marked([1.0], [False], "g")])


def test_a_threshold_at_a_rate_keeps_it() -> None:
    random = np.random.default_rng(0)
    realised = []
    for _ in range(300):
        scores = random.normal(size=(99 + 50, 8))
        items = [Marked(each, np.zeros(8, bool), "g") for each in scores]
        threshold = loc.threshold_at_rate(items[:99], 0.1)
        realised.append(loc.false_positive_rate(loc.flagged(items[99:], threshold)))
    # Exactly 10 of 100 places are above; the mean of 15,000 coins has a standard error of 0.004.
    assert np.mean(realised) == pytest.approx(0.1, abs=0.012)
    nineteen = [Marked([float(at)], [False], "g") for at in range(19)]
    assert loc.threshold_at_rate(nineteen, 0.05) == np.nextafter(18, 19)
    with pytest.raises(ValueError, match="18 good responses are too few"):
        loc.threshold_at_rate(nineteen[1:], 0.05)
    with pytest.raises(ValueError, match="between 0 and 1"):
        loc.threshold_at_rate(nineteen, 1.0)


def test_truth_by_characters() -> None:
    text = "about 250k dollars"
    offsets = [(0, 5), (5, 8), (8, 10), (10, 18), (18, 18)]
    # A token that shares nothing but its leading blank with the span is right.
    truth = loc.tokens_within(text, offsets, [(6, 11)])
    assert truth.tolist() == [False, True, True, False, False]
    item = loc.by_character([0.1, 0.9, 0.8, 0.2, 5.0], offsets, [(6, 10)], len(text), "g")
    assert item.scores.tolist() == [0.1] * 5 + [0.9] * 3 + [0.8] * 2 + [0.2] * 8
    assert item.truth.tolist() == [False] * 6 + [True] * 4 + [False] * 8
    # Two tokens that are bytes of one character share it; the larger score counts.
    emoji = loc.by_character([0, 1, 0], [(0, 1), (0, 1), (1, 2)], [(0, 1)], 3, "g", uncovered=0)
    assert emoji.scores.tolist() == [1, 0, 0]
    assert loc.span_f1([emoji]) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Marked([0.0, np.nan], [True, False], "g"), "NaN"),
        (lambda: Marked([0.0], [True, False], "g"), "shape"),
        (lambda: Marked([], [], "g"), "shape"),
        (lambda: loc.auroc([]), "no responses"),
        (lambda: loc.auroc([Marked([0.0, 1.0], [0.5, 1.0], "g")]), "not true or false"),
        (lambda: loc.span_f1([Marked([0.5], [True], "g")]), "not flags"),
        (lambda: bootstrap([], loc.auroc), "no groups|0 groups"),
        (lambda: Bootstrap(["a"])([[Marked([0.0], [True], "b")]], loc.auroc), "'b' was not given"),
        (lambda: Bootstrap(["a"])([[]], loc.auroc), "no responses"),
        (lambda: Bootstrap(["a"], level=1.5), "level 1.5"),
    ],
)
def test_what_cannot_be_measured_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
