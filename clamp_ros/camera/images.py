"""What is done to a camera's images on the host: depth in true units, lens distortion taken out, compression."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.camera import rvl
from clamp_ros.contract.errors import CameraError, ContractError
from clamp_ros.geometry.pinhole import Pinhole

JPEG_FORMAT = "rgb8; jpeg compressed bgr8"
"""`CompressedImage.format` of compressed_image_transport for an rgb8 image; JPEG files hold it as BGR."""
PNG_DEPTH_FORMAT = "16UC1; compressedDepth png"
"""`CompressedImage.format` of compressed_depth_image_transport for a 16UC1 image."""
RVL_DEPTH_FORMAT = "16UC1; compressedDepth rvl"
"""And its other one, an order of magnitude quicker and larger by half or less."""
_DEPTH_HEADER = struct.pack("<iff", 0, 0.0, 0.0)
# compressed_depth_image_transport's ConfigHeader: an enum (0 is INV_DEPTH, its only kind) and two floats that
# quantise 32FC1 depth and mean nothing for 16UC1. From ros-perception/image_transport_plugins, compression_common.h.

# Told to predict each pixel from its neighbour, libpng takes a quarter of the time that choosing a filter a row takes.
_PNG_FILTER = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB] if hasattr(cv2, "IMWRITE_PNG_FILTER") else []

_NEVER_DISTORTED = ("none",)
_SCALED_TANGENTIAL = ("modified_brown_conrady", "inverse_brown_conrady")
_PLAIN_TANGENTIAL = ("brown_conrady",)


class DepthScale:
    """From a camera's raw depth, in units of its own, to millimetres and metres: one table lookup a pixel."""

    def __init__(self, unit_m: float) -> None:
        """Makes the tables for one unit: 0.0001 m for a D405, 0.001 m for other D4xx.

        Raises:
            CameraError: the unit is no depth camera's.
        """
        if not 1e-6 <= unit_m <= 0.1:
            raise CameraError(f"depth unit is {unit_m} m, expected 0.000001 to 0.1; reset the camera to its defaults")
        self.unit_m = float(f"{unit_m:.6g}")  # the SDK's is a float32: 9.999999747e-05
        metres = np.arange(65536) * self.unit_m
        millimetres = np.rint(1000.0 * metres)
        self._millimetres = np.where(millimetres <= 65535, millimetres, 0).astype(np.uint16)
        self._metres = np.where(metres > 0.0, metres, np.nan).astype(np.float32)

    def millimetres(self, raw: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """(H, W) uint16 millimetres, 0 invalid (REP-118, 16UC1), as is what 16 bits cannot hold: 65.5 m."""
        return raw.copy() if self.unit_m == 0.001 else np.take(self._millimetres, raw)

    def metres(self, raw: NDArray[np.uint16]) -> NDArray[np.float32]:
        """(H, W) float32 metres, NaN invalid (REP-118, 32FC1)."""
        return np.take(self._metres, raw)


class Rectification:
    """Takes a lens's distortion out of a colour image and of the depth aligned to it, keeping the camera matrix.

    The factory calibrates a D405's and a D455's colour with distortion; a D435's and D415's has none. The rest of the
    stack knows pinhole images only.
    """

    def __init__(self, pinhole: Pinhole, model: str, coefficients: Sequence[float]) -> None:
        """Makes the map from rectified to distorted pixels.

        Args:
            pinhole: intrinsics of both the distorted and the rectified image.
            model: librealsense's name: none, brown_conrady, modified_brown_conrady or inverse_brown_conrady. The last,
                despite its name, is projected with the forward formula (librealsense's rsutil.h).
            coefficients: k1, k2, p1, p2, k3.

        Raises:
            CameraError: another model, or coefficients that are not five finite numbers.
        """
        if model not in (*_NEVER_DISTORTED, *_SCALED_TANGENTIAL, *_PLAIN_TANGENTIAL):
            raise CameraError(f"distortion model {model!r} is not supported, expected a Brown-Conrady one or none")
        if len(coefficients) != 5 or not all(map(math.isfinite, coefficients)):
            raise CameraError(f"distortion coefficients are {list(coefficients)}, expected 5 finite numbers")
        self.needed = model not in _NEVER_DISTORTED and any(coefficients)
        if not self.needed:
            return
        k1, k2, p1, p2, k3 = coefficients
        u, v = np.meshgrid(np.arange(pinhole.width), np.arange(pinhole.height))
        x, y = (u - pinhole.cx) / pinhole.fx, (v - pinhole.cy) / pinhole.fy
        r2 = x * x + y * y
        radial = 1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))
        tx, ty = (x * radial, y * radial) if model in _SCALED_TANGENTIAL else (x, y)
        dx = x * radial + 2.0 * p1 * tx * ty + p2 * (r2 + 2.0 * tx * tx)
        dy = y * radial + 2.0 * p2 * tx * ty + p1 * (r2 + 2.0 * ty * ty)
        self.map_u = (dx * pinhole.fx + pinhole.cx).astype(np.float32)
        self.map_v = (dy * pinhole.fy + pinhole.cy).astype(np.float32)
        self._fast = cv2.convertMaps(self.map_u, self.map_v, cv2.CV_16SC2)

    def color(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) as a pinhole camera would have taken it; black where the lens saw nothing."""
        return cv2.remap(image, *self._fast, cv2.INTER_LINEAR).astype(np.uint8, copy=False) if self.needed else image

    def depth(self, image: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """(H, W) aligned to the rectified colour; nearest pixels, for a mean of two depths is neither; 0 outside."""
        if not self.needed:
            return image
        return cv2.remap(image, self.map_u, self.map_v, cv2.INTER_NEAREST).astype(np.uint16, copy=False)


def jpeg(color: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """(N,) bytes of a JPEG file, with the format `JPEG_FORMAT`; color is (H, W, 3) RGB."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(color, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return _encoded(ok, data, "JPEG", color)


def png_depth(depth_mm: NDArray[np.uint16], level: int) -> NDArray[np.uint8]:
    """(N,) bytes with the format `PNG_DEPTH_FORMAT`: compressed_depth_image_transport's header, then a PNG file."""
    ok, data = cv2.imencode(".png", depth_mm, [cv2.IMWRITE_PNG_COMPRESSION, level, *_PNG_FILTER])
    header = np.frombuffer(_DEPTH_HEADER, np.uint8)
    return np.concatenate([header, _encoded(ok, data, "PNG", depth_mm)])


def rvl_depth(depth_mm: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """(N,) bytes with the format `RVL_DEPTH_FORMAT`: the same header, then `camera.rvl`."""
    return np.concatenate([np.frombuffer(_DEPTH_HEADER, np.uint8), rvl.encode(depth_mm)])


def _encoded(ok: bool, data: np.ndarray, kind: str, image: np.ndarray) -> NDArray[np.uint8]:
    if not ok:
        raise ContractError(f"an image of {image.shape} {image.dtype} cannot be encoded as {kind}")
    return data.reshape(-1).view(np.uint8)
