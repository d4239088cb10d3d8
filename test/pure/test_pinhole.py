"""Projection and deprojection."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.contract.errors import ContractError
from clamp_ros.geometry.pinhole import Pinhole

pinholes = st.builds(
    Pinhole, st.integers(1, 2000), st.integers(1, 2000), st.floats(50.0, 2000.0), st.floats(50.0, 2000.0),
    st.floats(-100.0, 2000.0), st.floats(-100.0, 2000.0),
)  # fmt: skip


@given(pinholes, st.floats(-500.0, 2500.0), st.floats(-500.0, 2500.0), st.floats(0.01, 50.0))
def test_deproject_then_project_is_nothing(pinhole: Pinhole, u: float, v: float, z: float) -> None:
    pixels, depth = pinhole.project(pinhole.deproject((u, v), z))
    np.testing.assert_allclose(pixels, (u, v), atol=1e-7)
    assert depth == pytest.approx(z)


@given(pinholes, st.floats(0.1, 10.0), st.floats(0.1, 10.0))
def test_points_on_a_ray_share_a_pixel(pinhole: Pinhole, z: float, scale: float) -> None:
    point = np.array([0.3 * z, -0.2 * z, z])
    np.testing.assert_allclose(pinhole.project(point)[0], pinhole.project(scale * point)[0], atol=1e-8)


def test_by_hand() -> None:
    pinhole = Pinhole(640, 480, fx=600.0, fy=500.0, cx=320.0, cy=240.0)
    pixels, depths = pinhole.project([[0.1, -0.2, 2.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(pixels, [[350.0, 190.0], [320.0, 240.0]])
    np.testing.assert_allclose(depths, [2.0, 1.0])
    np.testing.assert_allclose(pinhole.deproject((350.0, 190.0), 2.0), (0.1, -0.2, 2.0))
    np.testing.assert_array_equal(pinhole.k, [[600.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]])


def test_behind_the_camera_there_is_no_pixel() -> None:
    pixels, depths = Pinhole(4, 4, 1.0, 1.0, 0.0, 0.0).project([[0.0, 0.0, 0.0], [1.0, 1.0, -1.0]])
    assert np.isnan(pixels).all()
    np.testing.assert_array_equal(depths, [0.0, -1.0])


def test_a_field_of_view_reaches_the_images_edges() -> None:
    pinhole = Pinhole.from_fovy(848, 480, math.radians(60.0))
    half = math.tan(math.radians(30.0))
    # pixel centres are whole numbers, so the upper edge of the top row lies at -0.5
    assert pinhole.project((0.0, -half, 1.0))[0][1] == pytest.approx(-0.5)
    assert pinhole.project((0.0, half, 1.0))[0][1] == pytest.approx(479.5)
    assert pinhole.fx == pinhole.fy
    assert (pinhole.cx, pinhole.cy) == (423.5, 239.5)


@pytest.mark.parametrize(
    "values",
    [(0, 4, 1, 1, 0, 0), (4, 0, 1, 1, 0, 0), (4, 4, 0, 1, 0, 0), (4, 4, 1, -1, 0, 0), (4, 4, 1, 1, math.nan, 0),
     (4, 4, math.inf, 1, 0, 0)],
)  # fmt: skip
def test_what_is_no_camera_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ContractError):
        Pinhole(*values)  # type: ignore[arg-type]


@pytest.mark.parametrize("fovy", [0.0, math.pi, -1.0, math.nan])
def test_a_field_of_view_out_of_range_is_refused(fovy: float) -> None:
    with pytest.raises(ContractError, match="fovy"):
        Pinhole.from_fovy(4, 4, fovy)
