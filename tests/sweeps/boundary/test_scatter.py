"""Laws with a scatter of the rows, on counts that are drawn from one."""

import itertools

import numpy as np
import pandas
import pytest
from scipy import integrate, special, stats
from support import ROOT

from sweeps.boundary import law, report, scatter, tables

MODELS = {model.name: model for model in law.MODELS}


def drawn(width, *, sigma=0.0, slope=8.0, alive=0.0, runs=16, seed=0, sizes=(50, 100, 200)):
    """Counts of rows d0 = 4, 8, ... to N / 2, whose boundaries scatter by sigma about the law."""
    generator = np.random.default_rng(seed)
    steps = np.unique(np.round(2 * 2 ** (np.arange(40) / 3)))
    cells = []
    for n in sizes:
        for d0 in 4 * 2.0 ** np.arange(20):
            if d0 <= n / 2:
                half = width(n, d0) * np.exp(sigma * generator.standard_normal())
                cells += [(n, d0, d1, half) for d1 in steps if half / 4 < d1 < 4 * half + 10]
    n, d0, d1, half = np.array(cells, float).T
    p = special.expit(slope * np.log(d1 / half)) * (np.exp(-n * 2 ** (-alive * d1)) if alive else 1.0)
    return law.Counts(n, d0, d1, np.full(len(n), float(runs)), generator.binomial(runs, p).astype(float), d0)


def with_log(n, d0):
    return 1.2 * (n / d0) ** 0.9 + 1.3 * np.log2(n)


@pytest.mark.parametrize("name", ["proportional", "dead samples, proportional"])
def test_the_likelihood_of_a_row_is_an_integral_over_its_shift(name):
    """Against adaptive quadrature of the binomial likelihoods."""
    counts = drawn(lambda n, d0: 1.3 * n / d0, sigma=0.2, alive=0.9 if "dead" in name else 0.0, seed=1, sizes=(50, 100))
    found = scatter.fit(MODELS[name], counts)
    values = found.values

    def likelihood(row, e):
        part = counts.take(counts.rows == row)
        center = values["c"] * part.num_samples / part.d0
        steep = np.exp(values["s"] + values["w"] * np.log(part.num_samples / 200) + values["v"] * np.log(center))
        p = special.expit(steep * (np.log(part.d1 / center) - e))
        if "k" in values:
            p = p * np.exp(-part.num_samples * 2.0 ** (-values["k"] * part.d1))
        p = np.clip(p, 1e-300, 1 - 1e-16)
        return np.exp(np.sum(part.successes * np.log(p) + (part.runs - part.successes) * np.log1p(-p)))

    seen = scatter.foreseen(found, counts)
    for row, value in enumerate(seen):
        whole, _ = integrate.quad(
            lambda e, row=row: likelihood(row, e) * stats.norm.pdf(e, scale=values["sigma"]) * 1e8,
            -8 * values["sigma"], 8 * values["sigma"], limit=400, points=np.linspace(-1, 1, 9) * values["sigma"],
        )  # fmt: skip
        assert value == pytest.approx(np.log(whole / 1e8), abs=1e-3)
    assert found.log_likelihood == pytest.approx(seen.sum())


def test_quadrature_is_fine_enough_for_a_wide_scatter_and_a_steep_curve():
    """Against 10,000 nodes; with 401 of them it would be wrong by up to a nat and more a row."""
    counts = drawn(lambda n, d0: 1.3 * n / d0, slope=100.0, sigma=0.5, runs=64, seed=2, sizes=(50, 100))
    model = MODELS["proportional"]
    transition = (*law.TRANSITIONS["powers of N and d1*"], scatter.SCATTER)
    inner = np.array([np.log(1.3), np.log(100.0), 0.0, 0.0, np.log(0.5)])
    found = law.Fit(model, transition, inner, np.eye(5), 0.0, 0.0, 0.0)
    at = law.line(model, transition, inner, counts)
    nodes = np.linspace(-6, 6, 10_001)
    weights = -(nodes**2) / 2
    weights -= special.logsumexp(weights)
    table = np.stack([
        np.bincount(counts.rows, law.log_likelihood(at.logit(counts, 0.5 * node), counts)) for node in nodes
    ])  # fmt: skip
    exact = special.logsumexp(table + weights[:, None], axis=0)
    np.testing.assert_allclose(scatter.foreseen(found, counts), exact, atol=0.02)


@pytest.mark.parametrize("name", ["proportional", "dead samples, proportional"])
def test_rows_with_several_likely_shifts_are_integrated_over_all(name):
    """Rows of any counts, far from a law and with successes below failures, against many nodes."""
    model, generator = MODELS[name], np.random.default_rng(7)
    transition = (*law.TRANSITIONS["powers of N and d1*"], scatter.SCATTER)
    several = 0
    for steep, sigma in itertools.product([8.0, 60.0, 300.0], [0.01, 0.1, 0.5]):
        n = np.repeat(100.0 + np.arange(8), 5)  # A row each.
        runs = generator.choice([8.0, 16.0, 64.0], 40)
        widths = np.tile([16.0, 20, 24, 28, 40], 8)
        counts = law.Counts(
            n, np.full(40, 4.0), widths, runs, generator.binomial(runs.astype(int), 0.6) * 1.0, n / n * 4
        )
        inner = np.array([np.log(0.95), *([np.log(0.3)] if "dead" in name else []), np.log(steep), 0, 0, np.log(sigma)])
        at = law.line(model, transition, inner, counts)
        nodes = np.linspace(-6, 6, 20_001)
        density = _density(at, counts, sigma * nodes) - nodes**2 / 2
        exact = special.logsumexp(density, axis=1) + np.log(12 / 20_000 / np.sqrt(2 * np.pi))
        found = law.Fit(model, transition, inner, np.eye(len(inner)), 0.0, 0.0, 0.0)
        np.testing.assert_allclose(scatter.foreseen(found, counts), exact, atol=0.1)
        inside = density[:, 1:-1]
        peaks = (inside > density[:, :-2]) & (inside > density[:, 2:]) & (inside > density.max(1, keepdims=True) - 15)
        several += (peaks.sum(1) > 1).sum()
    assert (several > 0) == ("dead" in name)  # A logistic curve alone has one.


def _density(at, counts, shifts):
    """Log likelihoods, rows x shifts."""
    each = np.stack([law.log_likelihood(at.logit(counts, shift), counts) for shift in shifts], axis=1)
    return np.stack([each[counts.rows == row].sum(axis=0) for row in range(counts.rows.max() + 1)])


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_the_value(name):
    """Against central differences; with flat and with steep transitions, whose rows are far from their law."""
    generator = np.random.default_rng(1)
    for seed, (alive, steep) in enumerate([(0.0, 2.0), (0.9, 2.0), (0.9, 4.5), (0.0, 5.5)]):
        counts = drawn(lambda n, d0: 1.3 * n / d0, sigma=0.2, alive=alive, seed=seed, sizes=(50, 200))
        value = scatter._Marginal(MODELS[name], counts)
        inner = value.origin + 0.15 * generator.standard_normal(len(value.origin))
        inner[-4], inner[-1] = steep, np.log(0.2)
        step = 1e-5
        near = [[value(inner + way)[0] for way in (move, -move)] for move in step * np.eye(len(inner))]
        expected = -np.diff(near, axis=1)[:, 0] / (2 * step)
        # Nodes move with the numbers; where a row is far from its law they are few.
        scale = (1e-4 if steep < 3 else 2e-2) * (1 + np.abs(expected).max())
        np.testing.assert_allclose(value(inner)[1], expected, atol=scale)


@pytest.mark.parametrize(
    ("special_case", "wider"),
    [("proportional", "exponents"), ("dead samples, proportional", "dead samples, exponents")],
)
def test_a_wider_law_is_at_least_as_likely(special_case, wider):
    """On the measured counts, where an earlier fit of the wider one stopped 31 nats below."""
    cells = pandas.read_csv(ROOT / "docs" / "boundary" / "counts.csv")
    cells = cells[(cells["d0"] >= 8) & (cells["condition"] == "as_written") & (cells["trained_layers"] == "hidden")]
    cells = report.outcomes(cells[(cells["loss"] == "squared")]).query("outcome == 'criterion'")
    counts = law.Counts.of(tables.stable(cells))
    found = [scatter.fit(MODELS[name], counts).penalized for name in (special_case, wider)]
    assert found[1] > found[0] - 1e-2  # a = b = 1 is where their prior is.


def test_the_better_of_two_optima_is_found():
    """Steps of rows that differ look like one wide transition without scatter, which is the lesser optimum."""
    counts = drawn(lambda n, d0: 1.1 * n / d0, sigma=0.03, slope=150.0, alive=0.9, runs=64, seed=5)
    model = MODELS["dead samples, exponents"]
    found = scatter.fit(model, counts)
    generator = np.random.default_rng(0)
    for _ in range(4):
        start = found.inner + 0.2 * generator.standard_normal(len(found.inner))
        start[4], start[-1] = generator.uniform(2, 5), np.log(generator.choice([0.02, 0.1, 0.4]))
        assert scatter.fit(model, counts, start=start).penalized <= found.penalized + 1e-2


def test_a_law_with_scatter_is_found_and_its_intervals_cover():
    model, truth = MODELS["power"], {"c": 2.0, "a": 0.8, "sigma": 0.15}
    held, found = dict.fromkeys(truth, 0), []
    for seed in range(10):
        counts = drawn(lambda n, d0: 2 * (n / d0) ** 0.8, sigma=0.15, slope=20.0, seed=seed)
        best = scatter.fit(model, counts)
        found.append([best.values[name] for name in truth])
        for name, value in truth.items():
            place = [parameter.name for parameter in best.parameters].index(name)
            at = {place: best.parameters[place].inner(value)}
            profile = scatter.fit(model, counts, start=best.inner, fixed=at)
            assert profile.penalized <= best.penalized + 1e-2
            held[name] += 2 * (best.penalized - profile.penalized) < 3.8415
    for place, (name, value) in enumerate(truth.items()):
        assert held[name] >= 7, held  # Of 10: fewer have a probability of 0.001 at 95 percent.
        assert np.mean([each[place] for each in found]) == pytest.approx(value, rel=0.25)


def test_interval_ends_are_where_the_profile_has_fallen():
    counts = drawn(lambda n, d0: 2 * (n / d0) ** 0.8, sigma=0.1, sizes=(50, 100))
    found = scatter.fit(MODELS["proportional"], counts)
    estimates = scatter.intervals(found, counts)
    assert [each.name for each in estimates] == ["c", "s", "w", "v", "sigma"]
    assert np.isnan([estimates[1].low, estimates[3].high]).all()
    for place, each in enumerate(estimates[:1]):
        assert each.low < each.value < each.high
        for end in (each.low, each.high):
            at = {place: found.parameters[place].inner(end)}
            fallen = scatter.fit(MODELS["proportional"], counts, start=found.inner, fixed=at)
            assert 2 * (found.penalized - fallen.penalized) == pytest.approx(3.8415, abs=0.1)


@pytest.mark.parametrize(
    ("truth", "width", "alive", "wrong"),
    [
        ("power + log", with_log, 0.0, ("proportional",)),
        ("no dead sample, proportional", lambda n, d0: 1.1 * n / d0, 1.0, ("power",)),
    ],
)  # fmt: skip
def test_held_out_rows_pick_the_law_and_a_planted_wrong_one_loses(truth, width, alive, wrong):
    counts = drawn(width, sigma=0.02, alive=alive, slope=30.0, seed=3, runs=32)
    models = [MODELS[name] for name in (truth, *wrong)]
    rows = scatter.held_out(models, counts, law.leave_out_rows(counts))
    assert rows.rows == len(set(zip(counts.num_samples, counts.d0, strict=True)))
    assert rows.names[0] == truth
    assert list(rows.is_behind) == [False, *(True for _ in wrong)]
    quantile = stats.t.ppf(0.975, rows.rows - 1)
    np.testing.assert_allclose(rows.margin, quantile * rows.standard_error)
    assert rows.runs == counts.runs.sum()


def test_a_law_is_behind_only_by_more_than_chance():
    """Of the truth and the same law with a further parameter neither is behind; of one row nothing is told."""
    counts = drawn(lambda n, d0: 1.5 * n / d0, seed=2, sizes=(50, 100))
    models = [MODELS["proportional"], MODELS["power"]]
    scores = scatter.held_out(models, counts, law.leave_out_rows(counts))
    assert scores.rows == 7
    assert not scores.is_behind.any()
    one = scatter.held_out(models, counts, law.leave_out_rows(counts)[:1])
    assert np.isnan(one.margin).all()
    assert not one.is_behind.any()


def test_no_single_cell_decides_a_score():
    """A law wrong by 4 percent, where all runs fail on one side of a step and succeed on the other: each of its rows
    costs a few nats, where without scatter one cell of 64 runs may cost hundreds.
    """
    counts = drawn(lambda n, d0: 1.04 * n / d0, slope=200.0, runs=64, seed=6, sizes=(100, 200, 400))
    right, wrong = (
        scatter.foreseen(scatter.fit(MODELS[name], counts), counts).min() for name in ("proportional", "counting d0")
    )
    assert right - 10 < wrong


def test_what_is_left_out_is_not_seen():
    counts = drawn(with_log, sizes=(50, 100, 200, 400))
    (largest,) = law.leave_out_sizes(counts)
    assert set(counts.num_samples[largest]) == {400}
    changed = counts._replace(successes=np.where(largest, counts.runs - counts.successes, counts.successes))
    model = MODELS["power"]
    a, b = (scatter.held_out([model], each, [largest]).score[0] for each in (counts, changed))
    start = scatter.fit(model, counts).inner
    found = scatter.fit(model, counts.take(~largest), start=start)
    test = counts.take(largest)
    assert a == pytest.approx(scatter.foreseen(found, test).sum() / test.runs.sum(), rel=1e-3)
    assert b < a
    with pytest.raises(ValueError, match="too few N"):
        scatter.held_out([model], counts, [])


@pytest.mark.parametrize("name", MODELS)
def test_few_counts_give_finite_numbers(name):
    cells = [[50.0, 50.0], [4.0, 4.0], [4.0, 8.0], [8.0, 8.0], [0.0, 8.0], [4.0, 4.0]]
    counts = law.Counts(*map(np.array, cells))
    found = scatter.fit(MODELS[name], counts)
    assert np.isfinite(found.inner).all()
    assert np.isfinite(found.log_likelihood)
    assert np.isfinite(scatter.foreseen(found, counts)).all()
