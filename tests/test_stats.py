"""Statistics against closed forms, printed tables, exact arithmetic, and simulations."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from directalign.stats import (
    Z_95,
    Interval,
    bootstrap_interval,
    bootstrap_rate_interval,
    clustered_rate,
    effect,
    fit_strengths,
    holm,
    percentile_interval,
    person_weights,
    rate_interval,
    resample_counts,
    resample_groups,
    sign_test,
    strong_groups,
    t_quantile,
    wilson_interval,
    win_rate,
)

PROMPTS, SEEDS = 60, 2
GROUPS = [place // SEEDS for place in range(PROMPTS * SEEDS)]


# --- closed forms ---------------------------------------------------------------------------------


def test_wilson_known_values():
    # Newcombe (1998), table I: the score method without continuity correction
    known = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605)}
    known |= {(0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (successes, n), ends in known.items():
        found = wilson_interval(successes / n, n)
        assert (found.low, found.high) == pytest.approx(ends, abs=5e-5)
    for successes, n in ((0, 7), (3, 20), (250, 500), (7, 7)):
        published = stats.binomtest(successes, n).proportion_ci(method="wilson")
        found = wilson_interval(successes / n, n)
        assert (found.low, found.high) == pytest.approx((published.low, published.high), abs=1e-12)
    assert rate_interval([1.0, 0.0, 1.0, 1.0]) == wilson_interval(0.75, 4)
    assert rate_interval([1.0] * 4).as_dict().keys() == {"value", "low", "high", "n"}
    for rate, n in ((1.2, 10), (-0.1, 10), (0.5, 0)):
        with pytest.raises(ValueError, match="rate in"):
            wilson_interval(rate, n)


def test_t_quantiles_have_closed_forms_for_one_and_two_degrees():
    assert t_quantile(1) == pytest.approx(math.tan(math.pi * 0.95 / 2), rel=1e-10)
    assert t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-10)
    assert t_quantile(1, 0.5) == pytest.approx(1.0, rel=1e-10)
    assert t_quantile(30) == pytest.approx(2.04227, abs=1e-5)


def test_an_effect_is_a_mean_difference_with_its_normal_interval():
    a, b = [1.0, 2.0, 4.0], [0.0, 2.0, 1.0]  # differences 1, 0, 3
    paired = effect(a, b, paired=True)
    deviation = np.std([1.0, 0.0, 3.0], ddof=1)
    assert paired.value == pytest.approx(4 / 3) and paired.size == pytest.approx(4 / 3 / deviation)
    assert paired.high - paired.value == pytest.approx(Z_95 * deviation / 3**0.5)
    unpaired = effect(a, b[:2], paired=False, spread=0.5)
    error = math.sqrt(np.var(a, ddof=1) / 3 + np.var(b[:2], ddof=1) / 2)
    assert unpaired.size == pytest.approx((7 / 3 - 1) / 0.5)
    assert unpaired.value - unpaired.low == pytest.approx(Z_95 * error) and not unpaired.is_clear
    assert math.isfinite(effect([1.0, 1.0], [0.0, 0.0], paired=True).size)


# --- bootstrap ------------------------------------------------------------------------------------


def test_the_draws_are_those_of_torch_with_seed_0():
    """Recorded comparisons were resampled with torch; their intervals stay reproducible."""
    torch = pytest.importorskip("torch")
    picks = torch.randint(37, (50, 37), generator=torch.Generator().manual_seed(0)).numpy()
    expected = [np.bincount(row, minlength=37) for row in picks]
    np.testing.assert_array_equal(resample_counts(37, 50), expected)


def test_bootstrap_intervals_of_many_few_and_equal_samples():
    constant = bootstrap_interval(np.full(50, 0.25), resample_groups(range(50)))
    assert vars(constant) == pytest.approx(vars(Interval(0.25, 0.25, 0.25, 50)))
    values = np.random.default_rng(2).normal(0.5, 1, 400)
    found = bootstrap_interval(values, resample_groups(range(400)))  # the normal interval
    assert found.high - found.low == pytest.approx(2 * Z_95 * values.std(ddof=1) / 20, rel=0.06)
    assert found.low < found.value < found.high
    values = np.random.default_rng(3).normal(size=8)
    found = bootstrap_interval(values, resample_groups(range(8), resamples=20_000))
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.12)


def test_copies_of_a_prompt_do_not_narrow_an_interval():
    values = np.random.default_rng(4).normal(size=40)
    copies, prompts = np.repeat(values, 5), [place // 5 for place in range(200)]
    once = bootstrap_interval(values, resample_groups(range(40)))
    copied = bootstrap_interval(copies, resample_groups(prompts))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=1e-12)
    assert copied.n == 200
    by_image = bootstrap_interval(copies, resample_groups(range(200)))
    assert by_image.high - by_image.low < 0.6 * (once.high - once.low)


def test_groups_have_the_weight_of_their_samples():
    drawn = resample_groups(["a", "b", "b", "c"])
    assert drawn.groups == 3 and (drawn.counts.sum(1) == 3).all() and len(drawn.counts) == 2000
    means = drawn.means([0.0, 1.0, 1.0, 0.0])
    assert (means[drawn.counts[:, 1] == 3] == 1).all()
    values = [0.0, 1.0, 2.0, 3.0]  # samples of a single group are resampled one by one
    single = bootstrap_interval(values, resample_groups(["a"] * 4))
    assert single == bootstrap_interval(values, resample_groups(range(4)))
    pairs = resample_groups([place // 2 for place in range(20)])
    found = bootstrap_rate_interval(np.ones(20), pairs)  # Wilson's interval over the groups
    assert (found.low, found.high, found.n) == (wilson_interval(1.0, 10).low, 1.0, 20)


def test_a_number_undefined_on_many_resamples_has_no_interval():
    drawn = np.linspace(0, 1, 1000)
    found = percentile_interval(0.5, drawn, 7)
    assert found is not None and (found.low, found.high) == pytest.approx((0.025, 0.975))
    drawn[:100] = np.nan
    assert percentile_interval(0.5, drawn, 7) is None


def simulated(effect: float, rng: np.random.Generator, seeds: int = SEEDS) -> np.ndarray:
    """Differences of the images of two models: effect, shared by prompt, and noise."""
    prompt = np.repeat(rng.normal(size=PROMPTS), seeds)
    return effect + 0.7 * prompt + 0.7 * rng.normal(size=PROMPTS * seeds)


@pytest.mark.parametrize("effect", [0.0, 0.4])
def test_intervals_cover_planted_effects(effect):
    rng, drawn, runs = np.random.default_rng(7), resample_groups(GROUPS, resamples=1000), 600
    chance = float(stats.norm.cdf(effect / math.sqrt(0.98)))
    covered, won = 0, 0
    for _ in range(runs):
        difference = simulated(effect, rng)
        mean = bootstrap_interval(difference, drawn)
        rate = bootstrap_rate_interval(difference > 0, drawn)
        covered += mean.low <= effect <= mean.high
        won += rate.low <= chance <= rate.high
    assert 0.92 < covered / runs < 0.98 and 0.92 < won / runs < 0.98


def test_intervals_over_images_instead_of_prompts_cover_less():
    rng, by_image = np.random.default_rng(8), resample_groups(range(len(GROUPS)))
    found = [bootstrap_interval(simulated(0.0, rng), by_image) for _ in range(400)]
    assert np.mean([not each.low <= 0 <= each.high for each in found]) > 0.08


# --- rates of grouped answers ---------------------------------------------------------------------


def rate_of(answers: np.ndarray) -> Interval:
    """Of answers (items, annotators), alike on one item."""
    items = np.arange(answers.size) // answers.shape[1]
    return clustered_rate(answers.ravel(), np.ones(answers.size), [items.tolist()])[0]


def coverage(chance: float, items: int, annotators: int, alike: float, runs: int = 300) -> float:
    """Share of intervals with `chance`; annotators repeat an item's answer with chance `alike`."""
    covered = 0
    for seed in range(runs):
        rng = np.random.default_rng((seed, items, annotators))
        common = rng.random((items, 1)) < chance
        own = rng.random((items, annotators)) < alike
        answers = np.where(own, common, rng.random((items, annotators)) < chance)
        found = rate_of(answers)
        covered += found.low <= chance <= found.high
    return covered / runs


def test_grouped_rates_cover_planted_rates():
    cases = [(0.5, 40, 1, 0.0), (0.1, 60, 5, 0.0), (0.3, 30, 5, 0.7), (0.9, 50, 3, 1.0)]
    found = [coverage(*case) for case in cases]
    assert min(found) >= 0.92 and 0.94 <= np.mean(found) <= 0.98
    rare = [(0.02, 40, 10, 0.9), (0.05, 20, 10, 0.9), (0.95, 40, 10, 0.9), (0.02, 100, 10, 0.5)]
    assert min(coverage(*case) for case in rare) >= 0.92


def test_repeated_answers_do_not_narrow_a_grouped_rate():
    hits = (np.arange(30) % 3 == 0)[:, None]
    once, often = rate_of(hits), rate_of(np.repeat(hits, 10, axis=1))
    assert (once.low, once.high) == pytest.approx((often.low, often.high))
    assert (once.n, often.n) == (30, 300)


def test_grouped_rates_at_the_ends():
    all_of_them = rate_of(np.ones((20, 5)))
    assert all_of_them.high == 1 and all_of_them.low < 0.87
    assert all_of_them.low == pytest.approx(wilson_interval(1.0, 20, t_quantile(19)).low)
    one = rate_of(np.array([[1, 1, 0]]))
    assert (one.low, one.high) == (0.0, 1.0)
    half = rate_of(np.tile([1, 0], (20, 1)))  # no scatter, but only 40 answers
    assert vars(half) == pytest.approx(vars(wilson_interval(0.5, 40, t_quantile(19))))


@pytest.mark.parametrize("axis", [0, 1])
def test_answers_alike_within_people_or_prompts_widen_the_interval(axis):
    rng, shape = np.random.default_rng(3), (20, 20)
    people, prompts = (each.ravel().tolist() for each in np.indices(shape))
    alike = np.expand_dims(rng.random(20) < 0.5, axis) ^ (rng.random(shape) < 0.1)
    for answers, low, high in ((alike, 0.3, 0.6), (rng.random(shape) < 0.5, 0.09, 0.15)):
        found, _ = clustered_rate(answers.ravel(), np.ones(400), [people, prompts])
        assert low < found.high - found.low < high


def test_an_interval_and_its_test_agree_and_weights_are_of_people():
    answers, people = [1, 1, 1, 1, 1, 1, 0, 0], ["a"] * 6 + ["b", "c"]
    weights = person_weights(people)
    assert weights.tolist() == pytest.approx([8 / 18] * 6 + [8 / 3] * 2)
    assert clustered_rate(answers, weights, [people])[0].value == pytest.approx(1 / 3)
    for seed in range(40):
        values = np.random.default_rng(seed).random(30) < 0.7
        found, p = clustered_rate(values, np.ones(30), [[*range(10)] * 3])
        assert (p < 0.05) == (found.low > 0.5 or found.high < 0.5)
    twice, once = rate_interval([1, 1, 0, 0], "aabb"), rate_interval([1, 0], "ab")
    assert twice.low < rate_interval([1, 1, 0, 0]).low and (twice.n, once.n) == (4, 2)


# --- tests and win rates --------------------------------------------------------------------------


def exactly(won: int, lost: int) -> float:
    """The two-sided p in whole numbers."""
    n, fewer = won + lost, min(won, lost)
    tail = Fraction(2 * sum(math.comb(n, k) for k in range(fewer + 1)), 2**n)
    return float(min(Fraction(1), tail))


def test_the_sign_test_is_exact():
    counts = [(0, 0), (1, 0), (0, 5), (8, 1), (3, 3), (3, 4), (50, 30), (0, 60), (700, 800)]
    for won, lost in [*counts, (1480, 1020), (1900, 100)]:
        p = sign_test(won, lost)
        assert p == pytest.approx(exactly(won, lost), rel=1e-11) == sign_test(lost, won)
        if won + lost:
            assert p == pytest.approx(stats.binomtest(won, won + lost).pvalue)


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.6, 0.7]) == [1.0, 1.0] and holm([0.2]) == [0.2]


def test_a_tie_is_half_a_win_and_no_vote():
    a, b, drawn = [0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 4.0], resample_groups(range(4))
    found, other = win_rate(a, b, range(4), drawn), win_rate(b, a, range(4), drawn)
    assert (found.value, found.n) == (0.625, 4)
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.p == sign_test(2, 1) == other.p and found.low <= 0.625 <= found.high
    assert other.value == 1 - found.value
    assert other.low == pytest.approx(1 - found.high)


def test_the_sign_test_keeps_its_level_for_copies_of_a_prompt():
    rng, groups = np.random.default_rng(9), [place // 5 for place in range(5 * PROMPTS)]
    drawn = resample_groups(groups, resamples=20)
    differences = [simulated(0.0, rng, seeds=5) for _ in range(600)]
    by_prompt = [win_rate(np.zeros(len(each)), each, groups, drawn).p for each in differences]
    by_image = [sign_test(int((each > 0).sum()), int((each < 0).sum())) for each in differences]
    assert np.mean(np.array(by_prompt) <= 0.05) <= 0.06 < 0.15 < np.mean(np.array(by_image) <= 0.05)


# --- Bradley-Terry --------------------------------------------------------------------------------


def by_minorisation(wins: np.ndarray, rounds: int = 3000) -> np.ndarray:
    """Hunter's MM algorithm (2004) on the worths: another algorithm for the same maximum."""
    games, worth = wins + wins.T, np.ones(len(wins))
    for _ in range(rounds):
        worth = wins.sum(1) / (games / (worth[:, None] + worth[None, :])).sum(1)
        worth /= np.exp(np.log(worth).mean())
    return np.log(worth)


def test_strengths_equal_those_of_minorisation():
    for models in (2, 3, 5, 8):
        wins = np.random.default_rng(models).integers(1, 30, (models, models)).astype(float)
        np.fill_diagonal(wins, 0)
        np.testing.assert_allclose(fit_strengths(wins), by_minorisation(wins), atol=1e-8)


def test_strong_groups_begin_with_the_winners():
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[1, 0] = wins[2, 0] = wins[1, 3] = 1
    assert strong_groups(wins, "abcd") == (("c",), ("a", "b"), ("d",))
    assert strong_groups(np.zeros((2, 2)), "ab") == (("a",), ("b",))
