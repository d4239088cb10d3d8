"""Light meshes: what clustering may and may not lose, and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clamp_ros.contract.errors import SimulationError
from clamp_ros.sim import meshes
from clamp_ros.sim.meshes import Mesh, cluster_vertices, decimate, decimated, load_package_mesh, load_stl


def sphere(radius: float, steps: int = 80, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Mesh:
    """A sphere of about 4 * steps^2 triangles."""
    polar, turn = np.meshgrid(np.linspace(0, np.pi, steps + 1), np.linspace(0, 2 * np.pi, 2 * steps + 1), indexing="ij")
    points = np.stack([np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], axis=-1)
    index = np.arange(points[..., 0].size).reshape(points.shape[:2])
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    faces = np.concatenate([np.stack(t, axis=-1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])
    return meshes._without_degenerate(radius * points.reshape(-1, 3) + centre, faces)


def join(*parts: Mesh) -> Mesh:
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts)])
    return Mesh(np.concatenate([p.vertices for p in parts]),
                np.concatenate([p.faces + o for p, o in zip(parts, offsets, strict=False)]).astype(np.int32))


def test_a_fine_mesh_becomes_light_within_its_bounds() -> None:
    mesh = sphere(0.03)
    light = decimate(mesh, 0.004)
    assert len(light.faces) < len(mesh.faces) / 5
    assert np.abs(light.vertices.max(0) - mesh.vertices.max(0)).max() <= 0.004
    assert np.abs(light.vertices.min(0) - mesh.vertices.min(0)).max() <= 0.004
    assert light.area_m2 == pytest.approx(mesh.area_m2, rel=0.08)
    radius = np.linalg.norm(light.vertices, axis=1)
    np.testing.assert_allclose(radius, 0.03, atol=1e-6)  # kept vertices are original ones


def test_faces_keep_looking_outwards() -> None:
    light = decimate(sphere(0.03), 0.004)
    a, b, c = (light.vertices[light.faces[:, i]] for i in range(3))
    outward = np.einsum("ij,ij->i", np.cross(b - a, c - a), a + b + c)
    assert (outward > 0).mean() > 0.99


def test_a_part_that_would_vanish_is_noticed() -> None:
    mesh = join(sphere(0.03), sphere(0.0002, steps=6, centre=(0.05, 0.0015, 0.0015)))
    coarse, gap = cluster_vertices(mesh, 0.003)
    assert gap == np.inf  # the small sphere fell into one cell
    assert coarse.vertices[:, 0].max() < 0.04
    assert decimate(mesh, 0.0015).vertices[:, 0].max() == pytest.approx(0.0502, abs=1e-3)


def test_a_mesh_that_cannot_be_lightened_is_kept() -> None:
    mesh = sphere(0.0008, steps=5)
    assert decimate(mesh, 0.0015) is mesh


def test_the_cache_gives_the_same_mesh_and_survives_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mesh = sphere(0.02, steps=30)
    first = decimated(mesh)
    (stored,) = meshes.cache_folder().iterdir()
    monkeypatch.setattr(meshes, "decimate", lambda *_: pytest.fail("decimated again"))
    second = decimated(mesh)
    np.testing.assert_array_equal(first.vertices, second.vertices)
    np.testing.assert_array_equal(first.faces, second.faces)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stored.write_bytes(b"cut short")
    np.testing.assert_array_equal(decimated(mesh).vertices, first.vertices)
    assert "is unreadable and is made anew" in caplog.text
    assert stored.stat().st_size > 100


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        caplog: pytest.LogCaptureFixture) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    assert len(decimated(sphere(0.02, steps=30)).faces)
    assert "not cached" in caplog.text


def test_stl_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="cannot read mesh"):
        load_stl(tmp_path / "none.stl")
    (tmp_path / "text.stl").write_text("solid robot\nendsolid robot\n" + " " * 80)
    with pytest.raises(SimulationError, match="is not a binary STL"):
        load_stl(tmp_path / "text.stl")


def test_stl_vertices_are_merged_and_scaled(tmp_path: Path) -> None:
    corners = np.array([[0, 0, 0], [10, 0, 0], [0, 10, 0], [10, 10, 0]], "<f4")
    data = b"\0" * 80 + (2).to_bytes(4, "little")
    for face in ((0, 1, 2), (1, 3, 2)):
        data += np.zeros(3, "<f4").tobytes() + corners[list(face)].tobytes() + b"\0\0"
    (tmp_path / "square.stl").write_bytes(data)
    mesh = load_stl(tmp_path / "square.stl", 0.001)
    assert mesh.vertices.shape == (4, 3) and mesh.faces.shape == (2, 3)
    assert mesh.area_m2 == pytest.approx(1e-4)


@pytest.mark.skipif(meshes.package_mesh_folder() is None, reason="robosuite-models is not installed")
def test_the_fingers_stay_whole() -> None:
    """Careless decimation halves the fingers."""
    assets = meshes.package_mesh_folder()
    assert assets is not None
    for side in ("left", "right"):
        full = load_package_mesh(f"vx300s_8_custom_finger_{side}", assets)
        light = decimate(full)
        assert len(light.faces) < len(full.faces) / 8
        assert np.abs(light.vertices.max(0) - full.vertices.max(0)).max() < 0.0015
        assert np.abs(light.vertices.min(0) - full.vertices.min(0)).max() < 0.0015
    with pytest.raises(SimulationError, match="reinstall robosuite-models"):
        load_package_mesh("no_such_part", assets)
