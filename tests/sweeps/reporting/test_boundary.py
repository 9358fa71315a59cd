"""The boundary of a map as table, text and marks in a figure."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from sweeps.reporting import boundary

D1 = np.array([4, 8, 16, 32])


@pytest.fixture(scope="module")
def found():
    converged = np.array([[0, 2, 17, 10], [0, 0, 0, 0], [10, 10, 10, 10], [10, 5, 5, 0]])
    runs = np.array([[10, 10, 34, 10]] + [[10] * 4] * 3)
    summary = xr.Dataset(
        # In the order of no study: sizes first.
        {"runs": (("d1", "d0"), runs.T), "converged": (("d1", "d0"), converged.T)},
        coords={"d1": D1, "d0": [2, 4, 6, 8]},
    )
    return boundary.table(summary, "d1")


def test_a_row_of_the_map_is_a_row(found):
    assert list(found["d0"]) == [2, 4, 6, 8]
    assert list(found["runs"]) == [64, 40, 40, 40]
    assert list(found["place"]) == ["inside", "above", "below", "unknown"]
    assert set(found["degrees_of_freedom"]) == {2}
    first = found.iloc[0]
    assert 10 < first["boundary_low"] < first["boundary"] < first["boundary_high"] < 25
    assert 10 < first["bootstrap_low"] < first["boundary"] < first["bootstrap_high"] < 25
    assert found["boundary"].isna().tolist() == [False, True, True, True]


def test_text_says_what_is_known(found):
    first, *others = boundary.text(found, "d1", "d0").splitlines()[1:]
    assert f"{found['boundary'][0]:.3g} (" in first
    assert first.endswith("64 runs")
    assert others == ["      4: above 32, 40 runs", "      6: below 4, 40 runs", "      8: not known, 40 runs"]


def test_marks_stand_where_the_boundary_is(found):
    axes = Figure().subplots()
    axes.set_xlim(2, 34)
    handles = boundary.draw(axes, found, "d0")
    line, above, below = axes.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[found["boundary"][0], 2]])
    np.testing.assert_allclose(above.get_xydata(), [[32, 4]])
    np.testing.assert_allclose(below.get_xydata(), [[4, 6]])
    (bars,) = axes.collections
    np.testing.assert_allclose(bars.get_segments()[0][:, 0], found.loc[0, ["boundary_low", "boundary_high"]].tolist())
    assert len(handles) == 2  # Both bounds share one.
    assert axes.get_xlim() == (2, 34)
