"""Bootstrap intervals cover what they claim to, and pairs stay pairs."""

from __future__ import annotations

import numpy as np
import pytest

from eval import statistics
from eval.statistics import PairedBootstrap
from wdmoe_env.evaluation import plan_episodes

EXPERIMENTS = 600
# Binomial standard error of a 95 % coverage over the experiments, times three.
SLACK = 3 * (0.95 * 0.05 / EXPERIMENTS) ** 0.5


def coverage(draw, statistic, truth, count=150):
    """Share of experiments whose interval holds the truth."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(EXPERIMENTS):
        interval = statistic(PairedBootstrap(count, generator, resamples=400), *draw(generator, count))
        hits += interval.low <= truth <= interval.high
    return hits / EXPERIMENTS


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda generator, n: (generator.normal(3.0, 2.0, n),), 3.0),
        (lambda generator, n: (generator.uniform(-1.0, 1.0, n),), 0.0),
        (lambda generator, n: (generator.gamma(4.0, 0.5, n),), 2.0),
    ],
    ids=["normal", "uniform", "gamma"],
)
def test_the_interval_of_a_mean_covers_it_95_times_in_100(draw, truth):
    # Percentile intervals of n episodes are about 1 % of coverage short at n = 150.
    assert coverage(draw, PairedBootstrap.mean, truth) == pytest.approx(0.95, abs=SLACK + 0.01)


def test_the_interval_of_a_ratio_of_means_covers_it():
    def draw(generator, n):
        channel = generator.gamma(3.0, 1.0, n)
        return channel * generator.uniform(0.4, 0.6, n), channel

    assert coverage(draw, PairedBootstrap.ratio_of_means, 0.5) == pytest.approx(0.95, abs=SLACK + 0.01)


def test_the_width_is_that_of_the_standard_error():
    values = np.random.default_rng(1).normal(0.0, 1.0, 400)
    interval = PairedBootstrap(400, np.random.default_rng(2)).mean(values)
    standard_error = values.std() / 400**0.5
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error, rel=0.03)
    assert interval.mean == values.mean()


def test_what_both_sides_share_cancels():
    generator = np.random.default_rng(3)
    channel = generator.gamma(2.0, 30.0, 300)
    faster = 0.9 * channel + generator.normal(0.0, 0.1, 300)
    bootstrap = PairedBootstrap(300, generator)
    alone, ratio = bootstrap.mean(faster), bootstrap.ratio_of_means(faster, channel)
    difference = bootstrap.mean_difference(faster, channel)
    assert alone.high - alone.low > 5
    assert ratio.high - ratio.low < 1e-3
    assert difference.high < 0


def test_a_policy_against_itself_differs_by_exactly_nothing():
    values = np.random.default_rng(4).gamma(2.0, 30.0, 257)
    bootstrap = PairedBootstrap(257, np.random.default_rng(5))
    ratio, difference = bootstrap.ratio_of_means(values, values.copy()), bootstrap.mean_difference(values, values)
    assert (ratio.mean, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("draws_per_chunk", [1, 77, 10**9])
def test_every_resample_draws_all_units_whatever_the_chunks(monkeypatch, draws_per_chunk):
    monkeypatch.setattr(statistics, "DRAWS_PER_CHUNK", draws_per_chunk)
    bootstrap = PairedBootstrap(13, np.random.default_rng(6), resamples=500)
    assert bootstrap.resampled_means(np.ones(13)) == pytest.approx(np.ones(500), abs=1e-12)
    spread = bootstrap.resampled_means(np.arange(13.0)).std()
    assert spread == pytest.approx(np.arange(13.0).std() / 13**0.5, rel=0.15)


def test_intervals_follow_from_the_seed():
    values = np.random.default_rng(7).normal(size=50)
    first, again, other = (PairedBootstrap(50, np.random.default_rng(seed)).mean(values) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_one_episode_has_no_width_and_none_is_refused():
    interval = PairedBootstrap(1, np.random.default_rng(0)).mean(np.array([4.0]))
    assert (interval.mean, interval.low, interval.high) == (4.0, 4.0, 4.0)
    with pytest.raises(ValueError, match="at least one episode to resample, got 0"):
        PairedBootstrap(0, np.random.default_rng(0))


def test_windows_do_not_repeat_while_they_last():
    episodes = plan_episodes(25, num_windows=10, seed=7)
    for start in (0, 10):
        assert sorted(episodes.windows[start : start + 10]) == list(range(10))
    assert len(set(episodes.seeds)) == 25


def test_more_episodes_go_on_from_fewer_and_another_seed_draws_others():
    few, many, others = plan_episodes(8, 100, seed=7), plan_episodes(300, 100, seed=7), plan_episodes(8, 100, seed=8)
    assert (many.windows[:8] == few.windows).all()
    assert (many.seeds[:8] == few.seeds).all()
    assert (few.windows != others.windows).any()
    assert (few.seeds != others.seeds).all()


def test_batches_hold_every_episode_once():
    episodes = plan_episodes(10, 100, seed=7)
    batches = list(episodes.batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert (np.concatenate([batch.windows for batch in batches]) == episodes.windows).all()


def test_windows_of_one_document_are_drawn_together():
    """Where all windows of a document are alike, resampling windows believes in far too many samples."""
    generator = np.random.default_rng(0)
    documents = np.repeat(np.arange(40), 25)
    values = generator.normal(size=40)[documents]
    own = PairedBootstrap(1000, np.random.default_rng(1)).mean(values)
    whole = PairedBootstrap(1000, np.random.default_rng(1), clusters=documents).mean(values)
    assert (whole.mean, own.mean) == (values.mean(), values.mean())
    expected = 2 * 1.96 * values[::25].std() / 40**0.5
    assert whole.high - whole.low == pytest.approx(expected, rel=0.1)
    assert own.high - own.low == pytest.approx(expected / 5, rel=0.1)
    sizes = np.repeat(np.arange(3), [1, 2, 5])  # documents of other lengths: a mean of 1 stays 1
    same = PairedBootstrap(8, np.random.default_rng(1), clusters=sizes)
    np.testing.assert_allclose(same.resampled_means(np.ones(8)), 1.0)
