"""Triangle meshes for the simulator: finding and reading them, and making light copies for rendering only.

Software OpenGL is bound by vertices, so the visual meshes are decimated by vertex clustering; what decimation loses is
measured and bounded, and the result is cached on disk. Collision always uses the full meshes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import SimulationError

_log = logging.getLogger(__name__)

_CACHE_VERSION = 1
_STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("vertices", "<f4", (3, 3)), ("attribute", "<u2")])
_MESH_FOLDERS = ("robots/aloha/meshes", "grippers/meshes/aloha_gripper")
# robosuite-models keeps the arm's links in millimetres and the gripper's parts in metres, as Menagerie does.
_MILLIMETRE_PREFIXES = ("vx300s_1_", "vx300s_2_", "vx300s_3_", "vx300s_4_", "vx300s_5_", "vx300s_6_")


@dataclass(frozen=True, eq=False)
class Mesh:
    """vertices: (V, 3) float64 metres, each used by a face; faces: (F, 3) int32 indices, counter-clockwise outside."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]

    @property
    def area_m2(self) -> float:
        """Total surface area."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        return float(0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1).sum())


def package_mesh_folder() -> Path | None:
    """The assets folder of the installed `robosuite-models` package, or None; the package itself is not imported."""
    spec = importlib.util.find_spec("robosuite_models")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "assets"
        if all((folder / sub).is_dir() for sub in _MESH_FOLDERS):
            return folder
    return None


def load_package_mesh(name: str, assets: Path) -> Mesh:
    """A robot mesh by Menagerie's name from the folder of `package_mesh_folder`, in metres.

    Raises:
        SimulationError: the file is missing or is not a binary STL.
    """
    for sub in _MESH_FOLDERS:
        path = assets / sub / f"{name}.stl"
        if path.is_file():
            return load_stl(path, 0.001 if name.startswith(_MILLIMETRE_PREFIXES) else 1.0)
    raise SimulationError(f"no mesh {name}.stl below {assets}; reinstall robosuite-models, or use look:=primitive")


def load_stl(path: Path, scale: float = 1.0) -> Mesh:
    """Reads a binary STL file, merging equal vertices; coordinates are multiplied by `scale`.

    Raises:
        SimulationError: the file cannot be read or is not a binary STL.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SimulationError(f"cannot read mesh {path}: {error.strerror}") from None
    count = int.from_bytes(data[80:84], "little") if len(data) >= 84 else 0
    if count == 0 or len(data) < 84 + count * _STL_TRIANGLE.itemsize:
        raise SimulationError(f"mesh {path} is not a binary STL file of {count} triangles ({len(data)} bytes)")
    triangles = np.frombuffer(data, _STL_TRIANGLE, count, 84)["vertices"].reshape(-1, 3)
    corners = np.ascontiguousarray(triangles + np.float32(0.0))  # -0.0 becomes 0.0, so that equal means equal bits
    _, first, index = np.unique(corners.view("V12").ravel(), return_index=True, return_inverse=True)
    return _without_degenerate(corners[first].astype(np.float64) * scale, index.reshape(-1, 3))


def _proper(faces: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(F,) which faces use three different vertices."""
    a, b, c = faces.T
    return (a != b) & (b != c) & (c != a)


def _without_degenerate(vertices: NDArray[np.float64], faces: NDArray[np.integer]) -> Mesh:
    """Drops faces that use a vertex twice, repeated faces, and vertices that no face uses."""
    faces = faces[_proper(faces)]
    first = np.argmin(faces, axis=1)[:, None]
    rolled = np.take_along_axis(faces, (first + np.arange(3)) % 3, axis=1)  # the same winding from the least vertex on
    keys = np.unique(np.ravel_multi_index(tuple(rolled.T), (len(vertices),) * 3))
    faces = np.stack(np.unravel_index(keys, (len(vertices),) * 3), axis=1)
    used = np.zeros(len(vertices), dtype=bool)
    used[faces] = True
    renumbered = np.cumsum(used, dtype=np.int32) - 1
    return Mesh(vertices[used], renumbered[faces].astype(np.int32))


def cluster_vertices(mesh: Mesh, cell_m: float) -> tuple[Mesh, float]:
    """Merges all vertices within each cell of a grid into the one nearest their mean.

    Returns:
        The light mesh, and the furthest distance in metres from an original vertex to the nearest kept vertex among
        those of its own and the 26 neighbouring cells; infinite if there is none, which is a part that vanished.
    """
    low = mesh.vertices.min(axis=0)
    cells = np.floor((mesh.vertices - low) / cell_m).astype(np.int64) + 1
    shape = cells.max(axis=0) + 2
    keys = np.ravel_multi_index(tuple(cells.T), tuple(shape))
    unique, cluster = np.unique(keys, return_inverse=True)
    counts = np.bincount(cluster)
    mean = np.stack([np.bincount(cluster, mesh.vertices[:, i]) for i in range(3)], axis=1) / counts[:, None]
    distance = np.linalg.norm(mesh.vertices - mean[cluster], axis=1)
    order = np.lexsort((distance, cluster))
    representative = order[np.concatenate([[0], np.cumsum(counts)[:-1]])]
    faces = cluster[mesh.faces]
    light = _without_degenerate(mesh.vertices[representative], faces)
    kept = np.zeros(len(unique), dtype=bool)
    kept[faces[_proper(faces)]] = True
    nearest = np.full(len(mesh.vertices), np.inf)
    offsets = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    for offset in offsets @ np.array([shape[1] * shape[2], shape[2], 1]):
        place = np.minimum(np.searchsorted(unique, keys + offset), len(unique) - 1)
        here = (unique[place] == keys + offset) & kept[place]
        gap = np.linalg.norm(mesh.vertices[here] - mesh.vertices[representative[place[here]]], axis=1)
        nearest[here] = np.minimum(nearest[here], gap)
    return light, float(nearest.max())


def decimate(mesh: Mesh, tolerance_m: float = 0.0015, area_tolerance: float = 0.08) -> Mesh:
    """The lightest clustered copy of which nothing is lost, or the mesh itself where there is none.

    Tried from the coarsest grid down, a copy is taken when every original vertex lies within `tolerance_m` of a kept
    one, the bounding box agrees within `tolerance_m` on all six sides, and the area within `area_tolerance`.
    """
    for cell_m in tolerance_m * np.array([2.0, 1.6, 1.3, 1.0, 0.8, 0.6]):
        light, gap = cluster_vertices(mesh, cell_m)
        if gap > tolerance_m:
            continue
        sides = np.abs(_corners(light) - _corners(mesh))
        if sides.max() <= tolerance_m and abs(light.area_m2 / mesh.area_m2 - 1.0) <= area_tolerance:
            return light if len(light.faces) < len(mesh.faces) else mesh
    return mesh


def _corners(mesh: Mesh) -> NDArray[np.float64]:
    return np.stack([mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)])


def cache_folder() -> Path:
    """Where light meshes are kept: `clamp_ros/meshes` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clamp_ros" / "meshes"


def decimated(mesh: Mesh, tolerance_m: float = 0.0015) -> Mesh:
    """`decimate`, kept on disk under a hash of the input. A folder that cannot be written costs time only."""
    digest = hashlib.sha256(f"{_CACHE_VERSION} {tolerance_m!r}".encode())
    digest.update(np.ascontiguousarray(mesh.vertices).tobytes())
    digest.update(np.ascontiguousarray(mesh.faces).tobytes())
    path = cache_folder() / f"{digest.hexdigest()[:32]}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Mesh(stored["vertices"], stored["faces"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError) as error:  # cut short by a full disk, say: make it anew
        _log.warning("light mesh %s is unreadable and is made anew: %s", path, error)
    light = decimate(mesh, tolerance_m)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, vertices=light.vertices, faces=light.faces)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            file.write(buffer.getvalue())
        Path(file.name).replace(path)
    except OSError as error:
        _log.warning("light mesh not cached in %s: %s", path.parent, error.strerror)
    return light
