"""RVL by hand and back again, and compressed bags read as raw ones are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sample_bag import CAMERA, METADATA, TICKS, image_at, write_episode

from clamp_ros.camera import images, rvl
from clamp_ros.contract.errors import ContractError, RecordError
from clamp_ros.contract.interfaces import color_compressed_topic, color_topic, depth_compressed_topic, depth_topic
from clamp_ros.contract.robot import CONTROL_PERIOD_NS
from clamp_ros.record import compressed, messages
from clamp_ros.record.audit import audit
from clamp_ros.record.episode import Episode
from clamp_ros.record.writer import EpisodeWriter


def words(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


@pytest.mark.parametrize(
    ("row", "coded"),
    [
        ([0], 0x10000000),  # a zero, no depth
        ([0, 0, 0], 0x30000000),
        ([1], 0x01200000),  # no zero, one depth: +1 is 2
        ([4], 0x01810000),  # +4 is 8: 000 and more, 001
        ([0, 1], 0x11200000),
        ([1, 0], 0x01210000),  # and a zero, no depth
        ([5, 2, 0, 0, 3], 0x02A15212),  # +5 is 10: A1; -3 is 5; 2 zeros, 1 depth; +1 is 2
    ],
)
def test_rvl_is_what_the_paper_says(row, coded):
    depth = np.array([row], np.uint16)
    data = rvl.encode(depth)
    assert data.tobytes() == words(len(row), 1, coded)
    assert np.array_equal(rvl.decode(data), depth)


@given(
    hnp.arrays(
        np.uint16,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20),
        elements=st.one_of(st.just(0), st.integers(0, 65535), st.integers(600, 620)),
    )
)
def test_rvl_loses_nothing(depth):
    assert np.array_equal(rvl.decode(rvl.encode(depth)), depth)


def test_the_worst_image_fits():
    depth = np.zeros((9, 11), np.uint16)
    depth.flat[::2] = np.where(np.arange(50) % 2, 65535, 1)
    assert np.array_equal(rvl.decode(rvl.encode(depth)), depth)
    depth = np.where(np.arange(99).reshape(9, 11) % 2, 65535, 1).astype(np.uint16)
    assert np.array_equal(rvl.decode(rvl.encode(depth)), depth)


@given(st.binary(max_size=60), st.integers(0, 40))
def test_whatever_comes_in_decoding_ends_with_an_image_or_an_error(data, cut):
    for bad in (data, words(4, 3) + data, rvl.encode(image_at(0)[1]).tobytes()[:cut]):
        try:
            assert rvl.decode(np.frombuffer(bad, np.uint8)).dtype == np.uint16
        except ContractError as error:
            assert "RVL image" in str(error)


def compressed_image(tick: int, image_format: str, data: np.ndarray) -> memoryview:
    types = messages.typestore().types
    header = messages._header(tick * CONTROL_PERIOD_NS, "frame")
    message = types[compressed.COMPRESSED_IMAGE](header=header, format=image_format, data=data)
    return messages.typestore().serialize_cdr(message, compressed.COMPRESSED_IMAGE)


@pytest.mark.parametrize(
    ("pack", "kind"),
    [(lambda depth: images.png_depth(depth, 1), images.PNG_DEPTH_FORMAT), (images.rvl_depth, images.RVL_DEPTH_FORMAT)],
)
def test_a_bag_of_compressed_images_is_read_as_a_raw_one(tmp_path, pack, kind):
    writer = EpisodeWriter(tmp_path / "bag", METADATA)
    write_episode(writer, skip=lambda topic, tick: topic in (color_topic(CAMERA), depth_topic(CAMERA)))
    for tick in range(0, TICKS, 5):
        color, depth = image_at(tick)
        for name, data in (
            (color_compressed_topic(CAMERA), compressed_image(tick, images.JPEG_FORMAT, images.jpeg(color, 95))),
            (depth_compressed_topic(CAMERA), compressed_image(tick, kind, pack(depth))),
        ):
            writer.write(name, compressed.COMPRESSED_IMAGE, tick * CONTROL_PERIOD_NS, data)
    bag = writer.close("success")
    assert audit(bag).ok, audit(bag).text()
    with Episode.open(bag) as episode:
        assert episode.cameras == (CAMERA,)
        frames = episode.frames(CAMERA)
        assert frames.compressed
        assert len(frames) == TICKS // 5
        color, depth = image_at(15)
        assert np.array_equal(frames.depth_mm(3), depth), "depth is lossless"
        assert frames.color(3).shape == color.shape


def test_the_colours_of_a_jpeg_keep_their_places():
    color = np.zeros((16, 16, 3), np.uint8)
    color[..., 0] = 200  # red
    got = compressed.decode_color(compressed_image(0, images.JPEG_FORMAT, images.jpeg(color, 95)))
    assert np.abs(got.astype(int) - color).max() < 8


@pytest.mark.parametrize(
    ("decode", "kind", "data", "complaint"),
    [
        (compressed.decode_color, images.JPEG_FORMAT, b"no jpeg", "cannot be read"),
        (compressed.decode_color, images.JPEG_FORMAT, b"", "cannot be read"),
        (compressed.decode_depth, "32FC1; compressedDepth png", bytes(20), "expected '16UC1; compressedDepth png'"),
        (compressed.decode_depth, images.PNG_DEPTH_FORMAT, bytes(20), "no PNG of 16 bits"),
        (compressed.decode_depth, images.RVL_DEPTH_FORMAT, bytes(12), "RVL image of 0 bytes"),
    ],
)
def test_what_is_no_image_is_refused(decode, kind, data, complaint):
    with pytest.raises(RecordError, match=complaint):
        decode(compressed_image(0, kind, np.frombuffer(data, np.uint8)))
