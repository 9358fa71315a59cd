import numpy as np
import xarray as xr
from support.launchers import STUDIES

from sweeps.width_bounds.study import CONDITION_OF_METRIC
from sweeps.width_bounds.tables import tables

SIZES = np.array([32, 64, 128, 256])


def results(measured_over_expected):
    """Widths 10 N by expectation, measured up to N = 128 and there so many times as wide."""
    expected = np.broadcast_to(10.0 * SIZES[:, None, None], (4, 1, 3))
    measured = np.where(SIZES[:, None, None] <= 128, measured_over_expected * expected, np.nan)
    dimensions = ("num_samples", "delta", "seed")
    kinds = {"expected": expected, "measured": measured}
    widths = {f"lecun_{kind}_{name}": (dimensions, w) for kind, w in kinds.items() for name in CONDITION_OF_METRIC}
    status = (dimensions, np.ones((4, 1, 3), np.int8))
    return xr.Dataset({**widths, "status": status}, {"num_samples": SIZES, "delta": [0.5], "seed": range(3)})


def tabled(measured_over_expected):
    study = STUDIES["width_bounds"].make(scaling=("lecun",), delta=(0.5,), num_samples=tuple(SIZES.tolist()))
    return tables(results(measured_over_expected), study)


def test_expected_widths_stand_for_measured_ones_where_the_two_agree():
    summary, exponents = tabled(1.1)
    assert summary["source"].tolist()[:4] == ["measured"] * 3 + ["expected"]
    assert summary["width"].tolist()[3] == 2560
    assert (exponents["largest_num_samples"] == 256).all()


def test_or_where_nothing_was_measured():
    found = results(1.0)
    names = [name for name in found if "measured" in name]
    found = found.assign({name: found[name] * np.nan for name in names})
    study = STUDIES["width_bounds"].make(scaling=("lecun",), delta=(0.5,), num_samples=tuple(SIZES.tolist()))
    summary, exponents = tables(found, study)
    assert set(summary["source"]) == {"unknown"}
    assert exponents["exponent"].isna().all()


def test_and_are_left_out_where_they_do_not():
    summary, exponents = tabled(2.0)
    assert summary["source"].tolist()[:4] == ["measured"] * 3 + ["unknown"]
    assert np.isnan(summary["width"].tolist()[3])
    assert (exponents["largest_num_samples"] == 128).all()
    np.testing.assert_allclose(exponents["exponent"], 1, rtol=1e-12)
