"""Rows that were not there when laws were fitted, on counts drawn from a known law."""

import numpy as np
import pandas
import pytest
from scipy import special

from sweeps.boundary import foreseeing, joined, law, report, scatter
from sweeps.study import UsageError

MODELS = [model for model in law.MODELS if model.name in ("proportional", "power", "counting d0")]


def drawn(rows, factor=1.3, seed=0):
    """Counts, columns `joined.COLUMNS`, of d1* = factor N / d0, 16 runs a cell."""
    generator = np.random.default_rng(seed)
    cells = []
    for n, d0 in rows:
        half = factor * n / d0
        for d1 in np.unique(np.round(half * 2 ** np.linspace(-1, 1, 9))):
            successes = generator.binomial(16, special.expit(20 * np.log(d1 / half)))
            cells.append(dict.fromkeys(joined.COLUMNS, 0) | {
                "configuration": "a", "stop": "first_passage", "prove": False, "rate": 1.0, "precision": "float32",
                "condition": "scaled", "trained_layers": "hidden", "loss": "squared", "num_samples": n, "d0": d0,
                "d1": int(d1), "runs": 16, "converged": successes, "finished": 16, "failed": 16 - successes,
                "proved_global": np.nan, "proved_local": np.nan,
            })  # fmt: skip
    return pandas.DataFrame(cells)


KNOWN = drawn([(50, 4), (50, 8), (100, 4), (100, 8), (200, 8), (200, 16)])
NEW = drawn([(200, 12), (100, 6), (400, 24)], seed=1)


def test_the_law_foresees_rows_that_it_has_not_seen():
    scores, rows = foreseeing.foreseen(KNOWN, NEW, MODELS)
    assert set(scores["outcome"]) == {"criterion"}
    assert scores["model"].iloc[-1] == "counting d0"
    assert scores["is_behind"].tolist() == [False, False, True]
    assert scores["behind"].is_monotonic_increasing
    assert (scores[["rows", "runs"]] == [3, NEW["runs"].sum()]).all(axis=None)
    own = rows[rows["model"] == "proportional"]
    assert list(zip(own["num_samples"], own["d0"], strict=True)) == [(100, 6), (200, 12), (400, 24)]
    np.testing.assert_allclose(own["foreseen"], 1.3 * own["num_samples"] / own["d0"], rtol=0.03)
    measured = report.boundaries(report.outcomes(NEW)).sort_values("num_samples")
    assert own["boundary"].tolist() == measured["boundary"].tolist()
    assert ((own["boundary_low"] < own["foreseen"]) & (own["foreseen"] < own["boundary_high"])).sum() >= 2


def test_what_is_foreseen_does_not_depend_on_the_new_counts():
    _, rows = foreseeing.foreseen(KNOWN, NEW, MODELS)
    _, others = foreseeing.foreseen(KNOWN, drawn([(200, 12), (100, 6), (400, 24)], factor=2.0), MODELS)
    assert rows["foreseen"].tolist() == others["foreseen"].tolist()
    assert rows["boundary"].tolist() != others["boundary"].tolist()


def test_a_row_of_one_width_is_scored_and_shown():
    one = NEW.groupby(["num_samples", "d0"]).nth(3)
    scores, rows = foreseeing.foreseen(KNOWN, one, MODELS)
    assert set(scores["rows"]) == {3}
    assert len(rows) == 3 * len(MODELS)
    assert "boundary" not in rows
    _, mixed = foreseeing.foreseen(KNOWN, pandas.concat([one.iloc[:1], NEW[NEW["num_samples"] != 200]]), MODELS)
    assert mixed["boundary"].isna().sum() == len(MODELS)
    fits = {model.name: scatter.fit(model, law.Counts.of(KNOWN)) for model in MODELS}
    for row in rows.itertuples():
        assert row.foreseen == pytest.approx(float(fits[row.model].boundary(row.num_samples, row.d0)))
    best = scores.iloc[0]
    assert best["score"] * best["runs"] == pytest.approx(
        scatter.foreseen(fits[best["model"]], law.Counts.of(one)).sum()
    )


def test_known_rows_are_not_foreseen():
    both = pandas.concat([KNOWN.iloc[:3], NEW], ignore_index=True)
    kept = foreseeing.unseen(KNOWN, both)
    assert kept["num_samples"].tolist() == NEW["num_samples"].tolist()
    # The same N and d0 in another set-up is another row.
    assert len(foreseeing.unseen(KNOWN, KNOWN.assign(condition="as_written"))) == len(KNOWN)
    with pytest.raises(ValueError, match="must not be among"):
        foreseeing.foreseen(KNOWN, both, MODELS)


def test_a_set_up_that_cannot_be_fitted_is_left_out():
    one = KNOWN[KNOWN["num_samples"] == 50]
    assert [len(table) for table in foreseeing.foreseen(one, NEW, MODELS)] == [0, 0]
    assert [len(table) for table in foreseeing.foreseen(KNOWN, NEW.assign(converged=0), MODELS)] == [0, 0]


def test_a_report_says_how_well_and_is_else_as_without(tmp_path):
    known, new, mixed = tmp_path / "known.csv", tmp_path / "new.csv", tmp_path / "mixed.csv"
    KNOWN.to_csv(known, index=False)
    NEW.to_csv(new, index=False)
    pandas.concat([KNOWN, NEW.iloc[:5]]).to_csv(mixed, index=False)
    options = dict(candidates=MODELS, largest_certified=0, num_resamples=2)
    alone = joined.together([known], **options)
    found = joined.together([known], foresee=[new], **options)
    assert set(found.tables) - set(alone.tables) == {"foreseen", "foreseen_rows"}
    for name, table in alone.tables.items():
        pandas.testing.assert_frame_equal(table, found.tables[name])
    assert "foreseen: proportional: " in found.text or "foreseen: power: " in found.text
    assert "Foreseen: N = 200, 100, 400" in found.text
    with pytest.raises(UsageError, match="no row that the other folders have not"):
        joined.together([known, mixed], foresee=[known], **options)
    with pytest.raises(UsageError, match=r"--foresee: there are no results at"):
        joined.together([known], foresee=[tmp_path / "none"], **options)
    NEW.iloc[:0].to_csv(new, index=False)
    with pytest.raises(UsageError, match="--foresee: no runs to report"):
        joined.together([known], foresee=[new], **options)
    NEW.assign(steps_per_sample=500).to_csv(new, index=False)
    with pytest.raises(UsageError, match="no runs of one law"):
        joined.together([known], foresee=[new], **options)
