"""Figures from synthetic summaries: what they show, and what their files carry."""

import re
import warnings

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh
from matplotlib.contour import ContourSet
from matplotlib.patches import Rectangle
from PIL import Image

from sweeps.convergence_map import figures
from sweeps.reporting import boundary, style
from sweeps.study import Variant

BOTH = Variant(trained_layers="both")

D0, D1 = np.arange(2, 21, 2), np.arange(2, 31, 4)


def summary(missing=False, num_samples=100, d0=D0, d1=D1):
    probability = 1 / (1 + np.exp(-(d0[:, None] * d1 - num_samples) / 20.0))
    if missing:
        probability[0, :2] = np.nan
    known = ~np.isnan(probability)
    full = lambda value: (("d0", "d1"), np.where(known, value, np.nan))
    return xr.Dataset(
        {
            "runs": (("d0", "d1"), np.where(known, 10, 0)),
            "probability": (("d0", "d1"), probability),
            "probability_low": full(np.nan_to_num(probability) / 2),
            "probability_high": full(np.nan_to_num(probability)),
            "median_steps": (("d0", "d1"), np.where(probability > 0.2, 500.0, np.nan)),
            "mean_numerical_zeros": full(3.0),
            **{name: (("d0", "d1"), np.where(known, 2, 0)) for name in ("step_limit", "dead", "diverged")},
        },
        coords={"d0": d0, "d1": d1},
        attrs={"science": {"num_samples": num_samples, "zero_threshold": 1e-8}},
    )


ALL = {
    "probability": figures.probability,
    "intervals": lambda summaries, caption: figures.intervals(summaries, caption, "a method"),
    "numerical_zeros": figures.numerical_zeros,
    "convergence_steps": figures.convergence_steps,
    "causes": figures.causes,
}


def meshes(figure):
    return [
        [artist for artist in axes.get_children() if isinstance(artist, QuadMesh)]
        for axes in figure.axes
        if axes.get_xlabel()
    ]


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("setups", [("hidden",), ("hidden", "both")])
def test_a_panel_per_set_up_on_one_scale(name, setups):
    figure = ALL[name]({Variant(trained_layers=layers): summary() for layers in setups}, "the caption")
    found = [mesh for (mesh,) in meshes(figure)]
    assert len(found) == len(setups) * (3 if name == "causes" else 1)
    assert len({(mesh.norm.vmin, mesh.norm.vmax, mesh.cmap.name) for mesh in found}) == 1
    assert {mesh.cmap.name for mesh in found} <= {"cividis", "viridis"}
    assert figure.get_supxlabel() == "the caption"


def test_cells_stand_where_their_sizes_are():
    (mesh,) = meshes(figures.probability({BOTH: summary()}, ""))[0]
    np.testing.assert_allclose(np.ma.getdata(mesh.get_array()), summary()["probability"])
    corners = mesh.get_coordinates()
    np.testing.assert_allclose((corners[0, 1:, 0] + corners[0, :-1, 0]) / 2, D1)
    np.testing.assert_allclose((corners[1:, 0, 1] + corners[:-1, 0, 1]) / 2, D0)


def test_contour_and_curves():
    figure = figures.probability({BOTH: summary()}, "")
    axes = figure.axes[0]
    (contour,) = [artist for artist in axes.get_children() if isinstance(artist, ContourSet)]
    np.testing.assert_array_equal(contour.levels, [0.5])
    points = np.concatenate([path.vertices for path in contour.get_paths()])
    np.testing.assert_allclose(points.prod(axis=1), 100, rtol=0.15)  # The probability is 0.5 where d0 d1 = N.
    (curve,) = axes.get_lines()
    np.testing.assert_allclose(np.prod(curve.get_xydata(), axis=1), 100)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["probability 0.5", "$d_0 d_1 = N$"]
    wide = figures.probability({BOTH: summary(d1=np.arange(50, 150, 20))}, "").axes[0]
    assert any(set(np.asarray(line.get_xdata(), float)) == {100.0} for line in wide.get_lines())


def test_runs_of_a_cell_are_shown_where_they_differ():
    found = summary()
    found["converged"] = (10 * found["probability"]).round().astype(int)
    boundaries = {BOTH: boundary.table(found, "d1")}
    assert len(meshes(figures.probability({BOTH: found}, "", boundaries))) == 1
    found["runs"][3, 4] = 58
    figure = figures.probability({BOTH: found}, "", boundaries)
    (_,), (shown,) = meshes(figure)
    np.testing.assert_array_equal(np.ma.getdata(shown.get_array()), found["runs"])
    (panel,) = [axes for axes in figure.axes if "runs" in axes.get_title()]
    (number,) = [text for text in panel.texts if text.get_text() == "58"]
    assert number.get_position() == (D1[4], D0[3])
    assert len(panel.texts) == found["runs"].size


def test_missing_cells_are_hatched_and_not_interpolated():
    axes = figures.probability({BOTH: summary(missing=True)}, "").axes[0]
    (mesh,) = [artist for artist in axes.get_children() if isinstance(artist, QuadMesh)]
    assert np.ma.getmaskarray(mesh.get_array()).sum() == 2
    assert any(isinstance(patch, Rectangle) and patch.get_hatch() for patch in axes.patches)
    mesh.update_scalarmappable()
    opacity = np.reshape(mesh.get_facecolors(), (-1, 4))[:, 3]
    assert set(opacity[:2]) == {0}  # Transparent: the hatched ground shows.
    assert set(opacity[2:]) == {1}


@pytest.mark.parametrize("case", ["nothing finished", "one cell", "one row", "no convergence"])
def test_degenerate_maps_are_drawn_without_warnings(case, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "FORMATS", ("png",))
    found = summary()
    if case == "nothing finished":
        found = found.where(False).assign(runs=0 * found["runs"])
    elif case == "one cell":
        found = found.isel(d0=[3], d1=[3])
    elif case == "one row":
        found = found.isel(d0=[3])
    else:
        found["probability"] = 0 * found["probability"]
        found["median_steps"] = np.nan * found["median_steps"]
    found.attrs = summary().attrs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, draw in ALL.items():
            style.save(draw({BOTH: found}, "caption"), tmp_path, name, "abc")


def test_files_carry_the_configuration(tmp_path):
    paths = style.save(figures.probability({BOTH: summary()}, "caption"), tmp_path, "map", "0123456789ab")
    png, pdf, svg = paths
    assert [path.suffix for path in paths] == [".png", ".pdf", ".svg"]
    with Image.open(png) as image:
        assert image.info["Keywords"] == "configuration 0123456789ab"
        assert min(image.size) > 300
    content = pdf.read_bytes()
    assert b"configuration 0123456789ab" in content
    assert re.search(rb"/FontFile2", content)  # TrueType, embedded.
    assert "configuration 0123456789ab" in svg.read_text()


def test_drawing_again_gives_the_same_files(tmp_path):
    for folder in ("a", "b"):
        style.save(figures.causes({BOTH: summary()}, "caption"), tmp_path / folder, "map", "abc")
    for kind in style.FORMATS:
        assert (tmp_path / "a" / f"map.{kind}").read_bytes() == (tmp_path / "b" / f"map.{kind}").read_bytes()
