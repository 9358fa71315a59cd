"""The report of the boundary, on counts of a known law."""

import numpy as np
import pandas
import pytest
import xarray as xr
from scipy import special

from relu_sgd import Params, Problem, Status
from relu_sgd.theory import flip_certificate, width_search
from sweeps.boundary import certified, law, report, scaling, tables
from sweeps.study import Variant


@pytest.fixture(scope="module")
def table():
    """d1* = N / d0 + 1.3 log2 N, 16 runs a cell, of one set-up; and a second one that has no success."""
    generator = np.random.default_rng(0)
    widths = np.unique(np.round(2 * 2 ** (np.arange(16) / 3)))
    cells = [(n, d0, d1) for n in (20, 40, 80) for d0 in (4, 8, 32) if 2 * d0 <= n for d1 in widths]
    n, d0, d1 = np.array(cells, float).T
    half = n / d0 + 1.3 * np.log2(n)
    columns = dict(
        condition="as_written",
        trained_layers="hidden",
        loss="squared",
        num_samples=n.astype(int),
        d0=d0.astype(int),
        d1=d1.astype(int),
        runs=16,
        converged=generator.binomial(16, special.expit(8 * np.log(d1 / half))),
        proved_global=np.nan,
        proved_local=np.nan,
        diverged=0,
        dead_at_start=generator.poisson(16 * scaling.expected_dead(n, d1)) / 16,
        runs_with_dead=generator.binomial(16, scaling.probability_of_dead(n, d0, d1)[0]),
        full_rank_start=np.where(d0 * d1 >= 1.2 * n, 16, 0),
        full_rank_end=np.nan,
    )
    first = pandas.DataFrame(columns)
    return pandas.concat([first, first.assign(condition="scaled", converged=0)], ignore_index=True)


@pytest.fixture(scope="module")
def found(table):
    models = [model for model in law.MODELS if model.name in ("proportional", "power", "proportional + log")]
    return report.analyze(table, caption="a caption", candidates=models, largest_certified=20, num_resamples=4)


def test_tables_have_the_law_with_intervals(found):
    made = found.tables
    assert next(iter(made)) == "summary"
    compared = made["models"]
    assert set(compared["left_out"]) == {"rows", "largest N"}
    assert set(compared["condition"]) == {"as_written"}  # The other has no success to fit.
    for _, part in compared.groupby("left_out"):
        assert part["model"].iloc[0] == "proportional + log"
        assert part["behind"].is_monotonic_increasing
    laws = made["laws"]
    chosen = laws[laws["chosen"]].set_index("parameter")
    assert list(chosen.index) == ["c", "g", "s", "w", "v", "sigma"]
    for name, truth in (("c", 1), ("g", 1.3)):
        assert chosen["low"][name] < truth < chosen["high"][name]
    assert set(laws["model"]) == {"proportional + log"}
    collapse = made["collapse"].set_index(["regime", "coordinate"])["share_of_rows"]
    assert collapse["all", "d1 / d1* of proportional + log"] > collapse["all", "d0 d1 / N"] + 0.05
    assert set(made["transition"]["power"]) == {"w", "v"}


def test_boundaries_and_ranks(found):
    limits = found.tables["boundaries"].set_index(["condition", "num_samples", "d0"])
    assert len(limits) == 2 * (2 + 2 + 3)
    row = limits.loc[("as_written", 80, 8)]
    assert row["boundary_low"] < 10 + 1.3 * np.log2(80) < row["boundary_high"]
    assert row["expected_dead"] == pytest.approx(80 * 2 ** -row["boundary"])
    assert (limits.loc["scaled", "place"] == "above").all()
    rank = found.tables["rank"]
    assert set(rank["moment"]) == {"start"}  # The end was not measured.
    row = rank.set_index(["condition", "num_samples", "d0"]).loc[("as_written", 80, 4)]
    assert row["boundary_low"] < 24 < row["boundary_high"]
    assert row["full_rank"] / row["runs"] == row["share"]


def test_outcomes_are_counted_once(table):
    cells = table.head(2).assign(proved_global=[3, 0], proved_local=[5, 0], diverged=[2, 16], runs=16)
    again = cells.assign(runs=8, converged=0, diverged=0, proved_global=[8, np.nan], proved_local=[0, np.nan])
    found = report.outcomes(pandas.concat([cells, again], ignore_index=True))
    kept = found.set_index(["outcome", "d1"])[["runs", "converged", "undecided"]]
    assert sorted(kept.index) == [("criterion", 2), ("criterion", 3), ("proved", 2)]
    assert tuple(kept.loc["criterion", 2]) == (16, cells["converged"].iloc[0], 0)
    assert tuple(kept.loc["proved", 2]) == (8, 3, 6)


def test_undecided_runs_are_counted_and_the_boundary_with_them_as_failures_is_wider(table):
    """Of 16 runs near d1* = 8 the share that is decided falls to none in the widest cell but one."""
    widths = np.array([2, 4, 6, 8, 12, 16, 24])
    cells = table.head(7).assign(
        d1=widths, num_samples=20, d0=4, converged=[0, 0, 1, 8, 12, 16, 16],
        proved_global=[0, 0, 2, 4, 7, 0, 16], proved_local=[16, 16, 8, 4, 1, 0, 0],
    )  # fmt: skip
    found = report.analyze(cells, largest_certified=0, num_resamples=2)
    limits = found.tables["boundaries"].set_index("outcome")
    row = limits.loc["proved"]
    assert (row["runs"], row["undecided"]) == (74, 6 + 8 + 8 + 16)
    assert row["boundary_low"] < 8 < row["boundary_high"]
    assert row["boundary_undecided_fail"] > row["boundary_high"]
    assert row["boundary_undecided_fail_low"] < row["boundary_undecided_fail"] < row["boundary_undecided_fail_high"]
    failed = cells.assign(outcome="", converged=cells["proved_global"])
    again = report.boundaries(failed, num_resamples=0).iloc[0]
    assert row["boundary_undecided_fail"] == again["boundary"]
    assert row["boundary_undecided_fail_high"] == again["boundary_high"]
    assert limits.loc["criterion", "undecided"] == 0
    assert limits.loc["criterion", "boundary_undecided_fail"] == limits.loc["criterion", "boundary"]
    assert ", with 38 undecided as failures " in found.text


def test_dead_samples_are_compared_with_what_is_expected(found, table):
    dead = found.tables["dead_samples"]
    assert len(dead) == len(table)
    assert dead["inside"].mean() > 0.98
    _, low, high = report.dead_ratio(dead)
    assert low < 1 < high
    wrong = report.dead_samples(table.assign(runs_with_dead=16, dead_at_start=2.0))
    assert wrong["inside"].mean() < 0.6
    assert not low < report.dead_ratio(wrong)[0] < high


def test_figures_and_text(found):
    assert list(found.figures) == ["boundary", "dead_samples", "boundary_scaled_hidden_squared_criterion"]
    for figure in found.figures.values():
        assert "a caption" in figure._supxlabel.get_text()  # And counts.
    runs = 16 * int((found.tables["summary"]["condition"] == "as_written").sum())
    assert f"{runs:,} runs" in found.figures["boundary"]._supxlabel.get_text()
    assert f"as_written, hidden, squared, criterion: {runs} runs" in found.text
    assert "chosen law: proportional + log: c = " in found.text
    found.figures["boundary"].draw_without_rendering()
    certified = found.figures["boundary"].axes[2]
    widths = [line.get_ydata() for line in certified.lines if len(line.get_xdata()) and line.get_marker() == "D"]
    drawn = found.tables["certified"].query("certificate == '(10)'")["width"]
    np.testing.assert_array_equal(np.concatenate(widths), drawn)  # Of N = 20 alone.


def test_runs_fail_by_dead_samples():
    status = np.array([[[Status.CONVERGED, Status.MAX_STEPS_REACHED, Status.MAX_STEPS_REACHED, Status.DIVERGED, 0]]])
    start, end = np.array([[[1, 1, 0, 3, 0]]]), np.array([[[0, 2, 0, 5, 0]]])
    names = ("d0", "d1", "seed")
    data = xr.Dataset(
        {"status": (names, status), "dead_at_start": (names, start), "dead_samples": (names, end)},
        coords={"d0": [4], "d1": [6]},
    )
    variant = Variant(trained_layers="hidden", num_samples=50, name="scaled")
    (row,) = report.failures({variant: data}).to_dict("records")
    counts = dict(runs=3, failed=2, dead_start=2, dead_end=1, failed_dead_start=1, failed_dead_end=1)
    assert {name: row[name] for name in counts} == counts
    assert (row["condition"], row["num_samples"], row["d0"], row["d1"]) == ("scaled", 50, 4, 6)


def test_how_fast_samples_die_is_found():
    generator = np.random.default_rng(4)
    n, d1 = (axis.ravel() for axis in np.meshgrid([20, 40, 80, 160], np.arange(4, 24, 2)))
    columns = dict(
        condition="scaled", trained_layers="hidden", loss="squared", num_samples=n, d0=n // 2, d1=d1, runs=40
    )
    for moment, k in (("start", 1.0), ("end", 0.5)):
        columns[f"dead_{moment}"] = generator.binomial(40, 1 - np.exp(-n * 2.0 ** (-k * d1)))
    found = report.dying(pandas.DataFrame(columns)).set_index(["regime", "moment", "law", "parameter"])
    for moment, k in (("start", 1.0), ("end", 0.5)):
        row = found.loc["all", moment, "k", "k"]
        assert row["low"] < k < row["high"] < 1.2 * k
        assert row["deviance"] < 1.8 * row["expected_deviance"]


def test_a_share_of_dying_samples_that_depends_on_their_number_to_a_dimension_is_found():
    generator = np.random.default_rng(6)
    n, ratio, d1 = (axis.ravel() for axis in np.meshgrid([32, 64, 128, 256], [1, 2, 4, 8, 16], np.arange(4, 24, 2)))
    dead = generator.binomial(40, 1 - np.exp(-n * 2.0 ** (-(1 - 1 / (2 + 1.5 * ratio)) * d1)))
    columns = dict(
        condition="scaled", trained_layers="hidden", loss="squared", num_samples=n, d0=n // ratio, d1=d1, runs=40,
        dead_start=0, dead_end=dead,
    )  # fmt: skip
    found = report.dying(pandas.DataFrame(columns)).query("regime == 'all'").set_index(["law", "parameter"])
    one = found.loc["1 - 1 / (2 + q N / d0)", "q"]
    assert one["low"] < 1.5 < one["high"] < 1.4 * one["low"]
    assert one["deviance"] < 1.3 * one["expected_deviance"]
    power = found.loc["1 - 1 / (2 + q (N / d0)^p)", "p"]
    assert power["low"] < 1 < power["high"] < 1.5 * power["low"]
    assert found.loc["k", "k"]["deviance"] > 2 * one["deviance"]


def test_every_row_has_its_own_share_of_dying_samples():
    """Samples die like 2^(-0.9 d1) at d0 = 4 and like 2^(-0.6 d1) at d0 = 32."""
    generator = np.random.default_rng(5)
    d0, d1 = (axis.ravel() for axis in np.meshgrid([4, 32], np.arange(4, 24, 2)))
    columns = dict(
        condition="scaled",
        trained_layers="hidden",
        loss="squared",
        num_samples=64,
        d0=d0,
        d1=d1,
        runs=200,
        dead_start=0,
    )
    dead = generator.binomial(200, 1 - np.exp(-64 * 2.0 ** (-np.where(d0 == 4, 0.9, 0.6) * d1)))
    found = report.dying(pandas.DataFrame(columns | {"dead_end": dead}), by_row=True).set_index(["num_samples", "d0"])
    for inputs, k in ((4, 0.9), (32, 0.6)):
        row = found.loc[64, inputs]
        assert row["parameter"] == "k"
        assert row["low"] < k < row["high"] < 1.1 * k
        assert row["value"] == pytest.approx(k, rel=0.05)


def test_rows_that_diverge_are_left_out_of_the_laws(table):
    """At d0 = 4 of N = 80 all failures diverged: the boundary there is the learning rate's."""
    wild = (table["num_samples"] == 80) & (table["d0"] == 4)
    failed = table["runs"] - table["converged"]
    both = report.outcomes(table.assign(diverged=np.where(wild, failed, 0), proved_global=5, proved_local=5))
    kept = tables.stable(both)
    left = both.loc[both.index.difference(kept.index)]
    assert set(left["outcome"]) == {"criterion"}  # What is proved does not count runs that diverged.
    assert len(left) == wild.sum()
    assert set(zip(left["num_samples"], left["d0"], strict=True)) == {(80, 4)}
    assert len(tables.stable(report.outcomes(table))) == len(report.outcomes(table))


def test_certified_widths_are_those_of_the_theory(found):
    rows = {(row.certificate, row.source): row for row in certified.certified_widths([(20, 8)], measured_width=1e3)}
    assert set(rows) == {("path", "expected"), ("(10)", "expected"), ("(54)", "expected"), ("path", "measured"),
                         ("flips", "extrapolated")}  # fmt: skip
    generator = np.random.default_rng([0, 20, 8])
    X = generator.standard_normal((20, 8))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    Y = np.where(np.arange(20) % 2, 1.0, -1.0)[:, None]
    assert rows["path", "expected"].width == width_search.population_widths(X, Y)["path"]
    at = width_search.certificates(X, Y, [int(rows["path", "measured"].width)])
    assert width_search.CONDITIONS["path"](next(iter(at.values()))) < 1
    # The left side falls as d1^(-1/2): at 64 times the widest that is drawn, 1,280, it is an eighth.
    wide = []
    for _ in range(3):
        W = generator.standard_normal((8, 81_920))
        V = np.where(np.arange(81_920) % 2, 1.0, -1.0)[:, None] / np.sqrt(81_920)
        wide.append(flip_certificate.flip_certificate(Params(W, V), Problem(X, Y)).left_side)
    assert 1 / 4 < rows["flips", "extrapolated"].width / (81_920 * np.median(wide) ** 2) < 4
    few = {row.certificate: row for row in certified.certified_widths([(2, 8)])}
    assert few["flips"].source == "measured"
    assert few["flips"].width in (2 * 4.0 ** np.arange(6)).tolist()
    # Many samples in few dimensions: lambda(X) is 0 up to rounding.
    close = certified.certified_widths([(400, 1)])
    assert all(np.isinf(row.width) for row in close)
    assert {tuple(row) for row in found.tables["certified"][["num_samples"]].to_numpy()} == {(20,)}
