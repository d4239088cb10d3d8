"""The ChArUco board: its geometry against OpenCV's, its corners in pictures, and its prints at true scale."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from calibration_synthetic import PINHOLES, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from clamp_ros.calibration.board import Board
from clamp_ros.calibration.printing import DPI, PAPERS_M, print_board
from clamp_ros.contract.errors import CalibrationError, ConfigError
from clamp_ros.geometry.transforms import apply, axis_angle, make

BOARD = Board()
AHEAD = make(axis_angle((1.0, 0.0, 0.0), 0.5) @ axis_angle((0.0, 0.0, 1.0), 0.3), (-0.15, -0.10, 0.6))
PINHOLE = PINHOLES["front_left"]


@settings(max_examples=8)
@given(st.integers(4, 9), st.integers(4, 7), st.sampled_from(["4X4_50", "5X5_100", "6X6_250"]))
def test_a_picture_of_any_board_has_all_its_corners_where_they_are(columns, rows, dictionary):
    board = Board(columns, rows, 0.03, 0.0, dictionary)
    detection = board.detect(board.image(2000, 0.02))
    np.testing.assert_array_equal(np.sort(detection.ids), np.arange((columns - 1) * (rows - 1)))
    expected = 2000 * (board.corners_m[detection.ids, :2] + 0.02) - 0.5  # the first pixel's centre is 0
    assert np.abs(detection.pixels - expected).max() < 0.05


def test_it_is_opencvs_board():
    import cv2.aruco as aruco

    dictionary = aruco.getPredefinedDictionary(aruco.DICT_4X4_50)
    theirs = aruco.CharucoBoard((BOARD.columns, BOARD.rows), BOARD.square_m, BOARD.marker_m, dictionary)
    np.testing.assert_allclose(BOARD.corners_m, theirs.getChessboardCorners(), atol=1e-6)
    ours = BOARD.image(5000)
    drawn = theirs.generateImage(ours.shape[::-1], marginSize=0)
    assert np.mean(np.abs(ours.astype(int) - drawn) > 128) < 0.02  # theirs rounds markers to whole pixels


def test_corners_are_found_to_a_tenth_of_a_pixel_seen_at_an_angle():
    detection = BOARD.detect(picture(BOARD, PINHOLE, AHEAD))
    pixels, _ = PINHOLE.project(apply(AHEAD, BOARD.corners_m))
    assert len(detection) == len(BOARD.corners_m)
    assert np.abs(detection.pixels - pixels[detection.ids]).max() < 0.1


def test_why_there_is_no_board():
    seen = picture(BOARD, PINHOLE, AHEAD)
    mirrored = np.ascontiguousarray(seen[:, ::-1])
    assert not len(BOARD.detect(mirrored)), "a mirrored board must not be taken for one"
    assert "mirror" in BOARD.explain_absence(mirrored)
    assert "no marker can be read" in BOARD.explain_absence(np.full((240, 320), 127, np.uint8))
    other = Board(dictionary="5X5_100")
    assert not len(other.detect(seen))
    assert "another dictionary, 4X4_50" in other.explain_absence(seen)
    fewer = Board(8, 5)
    assert not len(fewer.detect(seen)), "a board of other squares must not be taken for this one"
    assert "do not make up a board of 8x5" in fewer.explain_absence(seen)
    corner = seen.copy()
    corner[:, 300:] = 128
    if not len(BOARD.detect(corner)):
        assert "markers can be read" in BOARD.explain_absence(corner)


def test_a_picture_must_be_one():
    with pytest.raises(CalibrationError, match=r"picture is \(4, 4, 4\) uint8"):
        BOARD.detect(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(CalibrationError, match="float64"):
        BOARD.detect(np.zeros((4, 4)))  # pyright: ignore[reportArgumentType]


def test_how_far_a_board_moved_in_a_picture():
    seen = BOARD.detect(picture(BOARD, PINHOLE, AHEAD))
    assert seen.moved_px(seen) == 0.0
    moved = make(AHEAD[:3, :3], AHEAD[:3, 3] + (0.01, 0.0, 0.0))
    distance = BOARD.detect(picture(BOARD, PINHOLE, moved)).moved_px(seen)
    assert distance is not None and 5.0 < distance < 15.0
    assert seen.moved_px(BOARD.detect(np.full((240, 320), 127, np.uint8))) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"square_m": 0.001}, "square_m is 0.001, expected 0.005"),
        ({"marker_m": 0.037}, "marker_m is 0.037, expected 0.3 to 0.9"),
        ({"columns": 20, "rows": 20}, "has 200 markers, more than dictionary 4X4_50"),
        ({"dictionary": "7X7"}, "dictionary is '7X7', expected one of"),
        ({"colums": 5}, "unknown key of the board 'colums'; did you mean 'columns'"),
        ({"columns": None}, "is not one"),
    ],
)
def test_an_impossible_board_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Board.from_dict(values)
    assert Board.from_dict(BOARD.to_dict()) == BOARD


def test_a_pdf_is_at_true_scale(tmp_path: Path):
    path = tmp_path / "sub" / "board.pdf"
    print_board(BOARD, path, "a3")
    data = path.read_bytes()
    box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", data)
    assert box is not None
    page = [float(value) * 0.0254 / 72 for value in box.groups()]
    np.testing.assert_allclose(page, PAPERS_M["a3"], atol=1e-6)
    rectangles = np.array(re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+) re", data), dtype=float) * 0.0254 / 72
    squares = rectangles[np.isclose(rectangles[:, 2], BOARD.square_m, atol=1e-6)]
    assert len(squares) == BOARD.columns * BOARD.rows // 2
    width = squares[:, 0].max() + BOARD.square_m - squares[:, 0].min()
    assert width == pytest.approx(BOARD.size_m[0], abs=1e-6)
    assert np.isclose(rectangles[:, 2], 0.2, atol=1e-6).sum() == 1, "the ruler"
    # drawn as the PDF says, it is the board
    image = np.full((round(2000 * page[1]), round(2000 * page[0])), 255, np.uint8)
    for x, y, w, h in rectangles:
        top, bottom = (page[1] - v for v in (y + h, y))
        image[round(2000 * top) : round(2000 * bottom), round(2000 * x) : round(2000 * (x + w))] = 0
    assert len(BOARD.detect(image)) == len(BOARD.corners_m)
    # every object is where the table says
    xref = int(re.findall(rb"startxref\n(\d+)", data)[0])
    assert data[xref:].startswith(b"xref")
    for number, offset in enumerate(re.findall(rb"(\d{10}) 00000 n", data), 1):
        assert data[int(offset) :].startswith(b"%d 0 obj" % number)


def test_a_png_says_its_resolution_and_is_the_board(tmp_path: Path):
    path, board = tmp_path / "board.png", Board(5, 4, 0.02)
    print_board(board, path, "a4")
    data = path.read_bytes()
    at = data.index(b"pHYs")
    across, up, unit = struct.unpack(">IIB", data[at + 4 : at + 13])
    assert (across, up, unit) == (23622, 23622, 1)
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None and image.shape[1] == round(0.297 * DPI / 0.0254)
    detection = board.detect(image.astype(np.uint8))
    pixels_a_square = np.ptp(detection.pixels[:, 0]) / (board.columns - 2)
    assert pixels_a_square / 23622 == pytest.approx(board.square_m, rel=1e-3)


def test_a_board_that_does_not_fit_its_page_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="380x266 mm and its white border do not fit a4; its squares may be 28 mm"):
        print_board(BOARD, tmp_path / "board.pdf", "a4")
    print_board(Board(square_m=0.028), tmp_path / "board.pdf", "a4")
    with pytest.raises(ConfigError, match=r"ends in .pdf or .png"):
        print_board(BOARD, tmp_path / "board.svg")
    with pytest.raises(ConfigError, match="paper is 'a5', expected one of"):
        print_board(BOARD, tmp_path / "board.pdf", "a5")
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match="cannot be written"):
        print_board(BOARD, tmp_path / "file" / "board.pdf")
