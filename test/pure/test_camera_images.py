"""Depth in true units, distortion against the SDK's projection, and compressed images as transports read them."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pyrealsense2 as rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamp_ros.camera.images import JPEG_FORMAT, PNG_DEPTH_FORMAT, DepthScale, Rectification, jpeg, png_depth
from clamp_ros.contract.errors import CameraError
from clamp_ros.geometry.pinhole import Pinhole

# A D455's colour camera, librealsense issue 9551.
D455 = (-0.0565362684428692, 0.068201869726181, 0.0003659751964733, 0.000692575704306364, -0.0218431670218706)
PINHOLE = Pinhole(160, 120, 100.0, 101.0, 80.5, 58.25)
MODELS = ("brown_conrady", "modified_brown_conrady", "inverse_brown_conrady")


def decoded(data: np.ndarray) -> np.ndarray:
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def test_a_d405_counts_tenths_of_a_millimetre():
    scale = DepthScale(float(np.float32(0.0001)))
    raw = np.array([[0, 1, 5, 15, 4996, 5004, 65535]], np.uint16)
    assert scale.millimetres(raw).tolist() == [[0, 0, 0, 2, 500, 500, 6554]]
    metres = scale.metres(raw)
    assert metres.dtype == np.float32 and np.isnan(metres[0, 0])
    assert metres[0, 1:] == pytest.approx([1e-4, 5e-4, 1.5e-3, 0.4996, 0.5004, 6.5535])


def test_millimetres_stay_what_they_are():
    raw = np.array([[0, 1, 1234, 65535]], np.uint16)
    millimetres = DepthScale(0.001).millimetres(raw)
    assert millimetres.tolist() == raw.tolist() and millimetres.base is None


def test_depth_beyond_sixteen_bits_of_millimetres_is_invalid():
    assert DepthScale(0.01).millimetres(np.array([[6553, 6554]], np.uint16)).tolist() == [[65530, 0]]


@given(st.sampled_from([0.0001, 0.00025, 0.0005, 0.001, 0.00012345]), st.integers(0, 65535))
def test_millimetres_are_the_nearest(unit_m, raw):
    scale = DepthScale(unit_m)
    assert abs(int(scale.millimetres(np.array([[raw]], np.uint16))[0, 0]) - raw * unit_m * 1000) <= 0.5 + 1e-6


@pytest.mark.parametrize("unit_m", [0.0, -0.001, 1.0, float("nan")])
def test_a_unit_that_is_no_depth_cameras_is_refused(unit_m):
    with pytest.raises(CameraError, match="depth unit is"):
        DepthScale(unit_m)


@pytest.mark.parametrize("model", MODELS)
def test_the_map_is_the_sdks_projection(model):
    intrinsics = rs.intrinsics()
    intrinsics.width, intrinsics.height = PINHOLE.width, PINHOLE.height
    intrinsics.fx, intrinsics.fy, intrinsics.ppx, intrinsics.ppy = PINHOLE.fx, PINHOLE.fy, PINHOLE.cx, PINHOLE.cy
    intrinsics.model, intrinsics.coeffs = getattr(rs.distortion, model), list(D455)
    rectification = Rectification(PINHOLE, model, D455)
    for u, v in ((0, 0), (159, 0), (80, 60), (13, 101), (159, 119)):
        ray = [(u - PINHOLE.cx) / PINHOLE.fx, (v - PINHOLE.cy) / PINHOLE.fy, 1.0]
        expected = rs.rs2_project_point_to_pixel(intrinsics, ray)
        assert (rectification.map_u[v, u], rectification.map_v[v, u]) == pytest.approx(expected, abs=2e-3)
        assert abs(expected[0] - u) + abs(expected[1] - v) > 0.05 or (u, v) == (80, 60), "the lens does distort"


def test_what_the_lens_bent_is_straight_again():
    strong = (-0.25, 0.05, 0.001, -0.002, 0.0)
    rectification = Rectification(PINHOLE, "brown_conrady", strong)
    u, v = np.meshgrid(np.arange(160), np.arange(120))
    straight = np.stack([u, v, np.full_like(u, 200)], -1).astype(np.uint8)
    # the lens: for each distorted pixel, where its ray would fall without the lens (OpenCV's inverse of the model)
    k = PINHOLE.k
    pixels = np.stack([u, v], -1).reshape(-1, 1, 2).astype(np.float64)
    rays = cv2.undistortPoints(pixels, k, np.array([*strong]), P=k).reshape(120, 160, 2).astype(np.float32)
    bent = cv2.remap(straight, rays[..., 0], rays[..., 1], cv2.INTER_LINEAR)
    inside = (slice(15, 105), slice(20, 140))
    assert np.abs(bent[inside].astype(int) - straight[inside]).max() >= 3
    assert np.abs(rectification.color(bent.astype(np.uint8))[inside].astype(int) - straight[inside]).max() <= 1


def test_depth_is_moved_but_never_mixed():
    rectification = Rectification(PINHOLE, "brown_conrady", (-0.25, 0.05, 0.0, 0.0, 0.0))
    depth = np.where(np.arange(160) < 100, 5000, 20000) * np.ones((120, 1))
    moved = rectification.depth(depth.astype(np.uint16))
    assert moved.dtype == np.uint16 and set(np.unique(moved)) <= {0, 5000, 20000}


@pytest.mark.parametrize(("model", "coefficients"), [("none", D455), ("inverse_brown_conrady", (0.0,) * 5)])
def test_an_image_without_distortion_is_left_alone(model, coefficients):
    rectification = Rectification(PINHOLE, model, coefficients)
    image = np.zeros((120, 160, 3), np.uint8)
    assert rectification.color(image) is image


def test_lenses_that_cannot_be_rectified_are_refused():
    with pytest.raises(CameraError, match="'kannala_brandt4' is not supported"):
        Rectification(PINHOLE, "kannala_brandt4", D455)
    with pytest.raises(CameraError, match="expected 5 finite numbers"):
        Rectification(PINHOLE, "brown_conrady", (float("nan"),) * 5)


def test_a_jpeg_is_what_compressed_image_transport_reads():
    color = np.zeros((48, 64, 3), np.uint8)
    color[:, :32] = (220, 30, 40)
    color[:, 32:] = (20, 60, 200)
    data = jpeg(color, 95)
    assert JPEG_FORMAT == "rgb8; jpeg compressed bgr8"
    back = decoded(data)[..., ::-1]
    assert np.abs(back[:, :24].astype(int) - (220, 30, 40)).max() <= 4
    assert np.abs(back[:, 40:].astype(int) - (20, 60, 200)).max() <= 4
    assert jpeg(color, 20).size < data.size


def test_a_depth_png_is_what_compressed_depth_image_transport_reads():
    rng = np.random.default_rng(3)
    depth = rng.integers(0, 65536, (48, 64)).astype(np.uint16)
    data = png_depth(depth, 1).tobytes()
    encoding, _, transport = PNG_DEPTH_FORMAT.partition(";")
    assert encoding == "16UC1" and "compressedDepth png" in transport
    assert struct.unpack_from("<i", data) == (0,), "INV_DEPTH"
    header = struct.calcsize("iff")
    assert data[header:][:8] == b"\x89PNG\r\n\x1a\n"
    assert np.array_equal(decoded(np.frombuffer(data[header:], np.uint8)), depth)
