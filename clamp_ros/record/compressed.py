"""Compressed images of a bag, as compressed_image_transport and compressed_depth_image_transport write them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.camera import rvl
from clamp_ros.contract.errors import ContractError, RecordError
from clamp_ros.record import messages

COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
_DEPTH_HEADER_BYTES = 12
"""compressed_depth_image_transport's ConfigHeader; its numbers mean nothing for 16UC1."""


def decode_color(cdr: bytes | memoryview) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a CompressedImage in a format that OpenCV reads: JPEG, PNG and others.

    Raises:
        RecordError: it is none.
    """
    message = messages.decode(cdr, COMPRESSED_IMAGE)
    image = _opencv(message.data, cv2.IMREAD_COLOR)
    if image is None:
        raise RecordError(f"compressed image of format {message.format!r} and {message.data.size} bytes cannot be read")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def decode_depth(cdr: bytes | memoryview) -> NDArray[np.uint16]:
    """(H, W) uint16 millimetres of a CompressedImage of 16UC1 depth, by PNG or RVL.

    Raises:
        RecordError: it is none.
    """
    message = messages.decode(cdr, COMPRESSED_IMAGE)
    encoding, _, transport = message.format.partition(";")
    words = transport.split()
    if encoding.strip() != "16UC1" or words[:1] != ["compressedDepth"] or words[1:] not in ([], ["png"], ["rvl"]):
        raise RecordError(
            f"compressed depth has format {message.format!r}, expected '16UC1; compressedDepth png' or rvl in its place"
        )
    data = message.data[_DEPTH_HEADER_BYTES:]
    if words[1:] == ["rvl"]:
        try:
            return rvl.decode(data)
        except ContractError as error:
            raise RecordError(str(error)) from error
    image = _opencv(data, cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16 or image.ndim != 2:
        raise RecordError(f"compressed depth of {message.data.size} bytes is no PNG of 16 bits")
    return image


def _opencv(data: NDArray[np.uint8], how: int) -> Any:
    """The image, or None; OpenCV raises on no bytes at all."""
    return cv2.imdecode(data, how) if data.size else None
