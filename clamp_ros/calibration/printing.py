"""The board on paper at true scale: a PDF of vectors, or a PNG that states its resolution.

Printers scale pages to fit unless they are told not to. A ruler under the board shows whether one did; what counts in
the end is the square that is measured on the print.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clamp_ros.calibration.board import Board
from clamp_ros.contract.errors import CalibrationError, ConfigError

PAPERS_M = {
    "a4": (0.297, 0.210), "a3": (0.420, 0.297), "a2": (0.594, 0.420), "a1": (0.841, 0.594),
    "letter": (0.2794, 0.2159), "tabloid": (0.4318, 0.2794),
}  # fmt: skip
"""Width and height, landscape."""
DPI = 600
_WHITE_M = 0.5
"""Of a square: the white border that the outermost markers need."""
_PT_PER_M = 72.0 / 0.0254
_INCH_M = 0.0254


def print_board(board: Board, path: Path, paper: str = "a3") -> None:
    """Writes the board, centred on a landscape page.

    Args:
        board: the board.
        path: ends in .pdf or .png.
        paper: a key of `PAPERS_M`.

    Raises:
        ConfigError: another suffix or paper, or the board does not fit the page.
        CalibrationError: the file cannot be written.
    """
    if paper not in PAPERS_M:
        raise ConfigError(f"paper is {paper!r}, expected one of {', '.join(PAPERS_M)}")
    size = PAPERS_M[paper]
    border = _WHITE_M * board.square_m
    if any(extent + border > page + 1e-9 for extent, page in zip(board.size_m, size, strict=True)):
        width, height = (1e3 * extent for extent in board.size_m)
        largest = min(page / (n + _WHITE_M) for page, n in zip(size, (board.columns, board.rows), strict=True))
        raise ConfigError(
            f"a board of {width:.0f}x{height:.0f} mm and its white border do not fit {paper}; its squares may be "
            f"{int(1e3 * largest)} mm there at most, or take a larger paper: {', '.join(PAPERS_M)}"
        )
    writers = {".pdf": _pdf, ".png": _png}
    if path.suffix.lower() not in writers:
        raise ConfigError(f"the board's file is {path}, expected a name that ends in .pdf or .png")
    data = writers[path.suffix.lower()](board, size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise CalibrationError(f"{path} cannot be written: {error}") from None


def _corner(board: Board, page_m: tuple[float, float]) -> tuple[float, float]:
    """Where the chessboard's top left is on the page, metres right and down."""
    width, height = board.size_m
    return 0.5 * (page_m[0] - width), 0.5 * (page_m[1] - height)


def _ruler_m(board: Board) -> float:
    """Its length: whole centimetres, no longer than the board."""
    return int(100 * min(board.size_m[0], 0.2)) / 100


def _caption(board: Board) -> str:
    ruler = f"this line is {1e3 * _ruler_m(board):.0f} mm" if _ruler_m(board) else ""
    return f"ChArUco {board}, markers {1e3 * board.marker_m:g} mm. Print at 100 %, not fitted: {ruler}"


def _pdf(board: Board, page_m: tuple[float, float]) -> bytes:
    """One page of filled rectangles. Source: ISO 32000-1, sections 7.5 (file structure) and 8.5 (paths)."""
    x0, y0 = _corner(board, page_m)

    def rectangle(x: float, y: float, width: float, height: float) -> str:
        # PDF's y points up from the page's bottom
        values = (x, page_m[1] - y - height, width, height)
        return " ".join(f"{_PT_PER_M * value:.4f}" for value in values) + " re"

    below = min(y0 + board.size_m[1] + 0.004, page_m[1] - 0.002)
    lines = [rectangle(x0 + x, y0 + y, w, h) for x, y, w, h in board.black_m()]
    lines += [rectangle(x0, below, _ruler_m(board), 0.0003), "f"]
    text = _caption(board).replace("(", r"\(").replace(")", r"\)")
    at = f"{_PT_PER_M * (x0 + _ruler_m(board) + 0.003):.2f} {_PT_PER_M * (page_m[1] - below - 0.0005):.2f}"
    lines.append(f"BT /F1 5 Tf {at} Td ({text}) Tj ET")
    stream = "\n".join(lines).encode("latin-1")
    box = " ".join(f"{_PT_PER_M * value:.4f}" for value in page_m)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /ViewerPreferences << /PrintScaling /None >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {box}] /Contents 4 0 R "
        "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>".encode(),
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
    ]
    out = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    xref = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, xref)
    return bytes(out)


def _png(board: Board, page_m: tuple[float, float]) -> bytes:
    width, height = (round(extent * DPI / _INCH_M) for extent in page_m)
    page = np.full((height, width), 255, np.uint8)
    x0, y0 = (round(v * DPI / _INCH_M) for v in _corner(board, page_m))
    image = board.image(DPI / _INCH_M)
    page[y0 : y0 + image.shape[0], x0 : x0 + image.shape[1]] = image
    line = min(y0 + image.shape[0] + DPI // 6, height - DPI // 12)
    end = x0 + round(_ruler_m(board) * DPI / _INCH_M)
    page[line : line + 8, x0:end] = 0
    cv2.putText(page, _caption(board), (end + DPI // 8, line + 20), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 0, 2, cv2.LINE_AA)
    ok, data = cv2.imencode(".png", page)
    if not ok:
        raise CalibrationError(f"a page of {width}x{height} pixels cannot be encoded as PNG")
    return _with_resolution(data)


def _with_resolution(png: NDArray[np.uint8]) -> bytes:
    """A PNG file with the chunk pHYs, pixels a metre, after its header (PNG specification, section 11.3.5.3)."""
    data = png.tobytes()
    per_metre = round(DPI / _INCH_M)
    body = b"pHYs" + struct.pack(">IIB", per_metre, per_metre, 1)
    chunk = struct.pack(">I", 9) + body + struct.pack(">I", zlib.crc32(body))
    after_header = 8 + 25
    return data[:after_header] + chunk + data[after_header:]
