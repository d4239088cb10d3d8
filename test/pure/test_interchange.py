"""Bags go out to ALOHA HDF5 and LeRobot datasets and come back; others' datasets come in; what is lost is said."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from interchange_bag import CAMERAS, PINHOLES, START_NS, TICKS, image_of, joints_at, make_bag, pose_of

from clamp_ros import cli
from clamp_ros.contract.errors import RecordError
from clamp_ros.contract.interfaces import object_frame
from clamp_ros.contract.robot import ARMS, CONTROL_PERIOD_NS, REST_POSE
from clamp_ros.geometry.kinematics import world_from_gripper
from clamp_ros.interchange import statistics
from clamp_ros.interchange.aloha import (
    MOTOR_NAMES,
    Foreign,
    aloha_from_positions,
    clip_grippers,
    joint_order,
    positions_from_aloha,
)
from clamp_ros.interchange.bag import BagRecording, write_bag
from clamp_ros.interchange.convert import export_bags, import_episodes
from clamp_ros.interchange.rows import Recording
from clamp_ros.record.audit import audit
from clamp_ros.record.episode import Episode
from clamp_ros.record.replay import load_commands

h5py = pytest.importorskip("h5py")
pq = pytest.importorskip("pyarrow.parquet")
FORMATS = ("aloha_hdf5", "lerobot")


@pytest.fixture(scope="module")
def bags(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bags")
    make_bag(folder / "a")
    make_bag(folder / "b", ticks=60)
    return folder


def assert_same(a: Recording, b: Recording, joints: float) -> None:
    """Rows and images of two recordings are equal: joints within a tolerance, stamps and images to the bit."""
    x, y = a.rows, b.rows
    assert np.array_equal(x.stamps_ns, y.stamps_ns) and np.array_equal(x.state_stamps_ns, y.state_stamps_ns)
    for name in ("positions", "velocities", "efforts", "actions"):
        np.testing.assert_allclose(getattr(x, name), getattr(y, name), atol=joints, rtol=joints, err_msg=name)
    assert x.task_state == y.task_state and x.cameras.keys() == y.cameras.keys()
    for name, camera in x.cameras.items():
        other = y.cameras[name]
        assert camera.pinhole == other.pinhole and camera.has_depth == other.has_depth
        assert np.array_equal(camera.stamps_ns, other.stamps_ns) and np.array_equal(camera.held, other.held)
        if camera.world_from_camera is not None:
            assert other.world_from_camera is not None
            np.testing.assert_allclose(camera.world_from_camera, other.world_from_camera, atol=1e-14)
        for i in range(len(camera)):
            assert np.array_equal(a.color(name, i), b.color(name, i))
            assert not camera.has_depth or np.array_equal(a.depth_mm(name, i), b.depth_mm(name, i))


def test_rows_are_what_a_policy_would_have_seen_at_each_command(bags):
    with BagRecording(bags / "a") as recording:
        rows = recording.rows
        assert len(rows) == TICKS and rows.stamps_ns[0] == START_NS
        np.testing.assert_allclose(rows.positions[10], joints_at(10))
        np.testing.assert_allclose(rows.actions[10], joints_at(10) + 0.01)
        np.testing.assert_allclose(rows.efforts[10], 1.0)
        for camera in rows.cameras.values():
            taken = camera.stamps_ns[camera.held]
            assert (taken <= rows.state_stamps_ns).all()  # none from the future
            assert (rows.state_stamps_ns - taken < 2 * CONTROL_PERIOD_NS).all()  # and the newest there was
        assert np.array_equal(recording.color("wrist_left", 5), image_of("wrist_left", 5)[0])
        poses = rows.cameras["wrist_left"].world_from_camera
        assert poses is not None
        np.testing.assert_allclose(poses[5], pose_of("wrist_left", 5), atol=1e-12)
        assert json.loads(rows.task_state[7])["text"] == "Progress: 5"
        assert recording.left_out["messages of /note"] == 3
        assert recording.left_out["joint states between or after the commands"] == 3


@pytest.mark.parametrize(("format_", "joints"), [("aloha_hdf5", 1e-15), ("lerobot", 1.2e-7)])
def test_a_bag_comes_back_as_it_was(format_, joints, bags, tmp_path):
    told = export_bags([bags], format_, tmp_path / "out")
    assert (told.done, told.rows, told.refused) == (2, TICKS + 60, [])
    assert told.left_out["messages of /note"] > 0
    assert ("poses of the object mug" in told.left_out) == (format_ == "lerobot")
    back = tmp_path / "back"
    source = tmp_path / "out"
    told = import_episodes([source], format_, back, Foreign())
    assert (told.done, told.refused, dict(told.left_out)) == (2, [], {})
    for name in ("a", "b"):
        assert audit(back / name).ok
        with BagRecording(bags / name) as before, BagRecording(back / name) as after:
            assert_same(before, after, joints)
            assert after.rows.metadata.task == "mug_on_plate" and after.rows.metadata.seed == 7
            assert after.rows.metadata.outcome == "success" and after.rows.metadata.cameras == CAMERAS
            assert after.rows.metadata.extra.keys() == {"simulated", "imported"}
            objects = before.rows.objects if format_ == "aloha_hdf5" else {}
            assert after.rows.objects.keys() == objects.keys()
            for key, poses in objects.items():
                np.testing.assert_allclose(after.rows.objects[key], poses, atol=1e-14)
    _, commands = load_commands(back / "a")  # of `clamp replay`
    assert len(commands) == TICKS
    with Episode.open(back / "a") as episode:  # as the nodes would have sent them
        stamp = int(episode.joint_states.stamps_ns[9])
        for arm in ARMS:
            pose = world_from_gripper(arm, episode.joint_states.at(stamp))
            np.testing.assert_allclose(episode.world_from_grippers(stamp)[arm], pose, atol=1e-9)
        assert (object_frame("mug") in episode.tf.frames()) == (format_ == "aloha_hdf5")


@pytest.mark.parametrize("format_", FORMATS)
def test_an_interrupted_export_goes_on(format_, bags, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export_bags([bags / "a"], format_, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and "meta" not in p.parts}

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(BagRecording, "depth_mm", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_bags([bags], format_, out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and "meta" not in p.parts} == before
    told = export_bags([bags], format_, out)
    assert (told.done, told.there) == (1, 1)
    assert export_bags([bags], format_, out).there == 2
    assert import_episodes([out], format_, tmp_path / "back", Foreign()).done == 2


@pytest.mark.parametrize("format_", FORMATS)
def test_an_interrupted_import_goes_on_and_leaves_no_half_bag(format_, bags, tmp_path, monkeypatch):
    out, back = tmp_path / "out", tmp_path / "back"
    export_bags([bags], format_, out)
    with monkeypatch.context() as patched:
        patched.setattr("clamp_ros.record.messages.encode_depth", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_episodes([out], format_, back, Foreign())
    assert list(back.iterdir()) == []
    left = back / "a.partial"  # as of a process that was killed
    left.mkdir()
    (left / "a_0.mcap").write_bytes(b"half")
    assert import_episodes([out], format_, back, Foreign()).done == 2
    assert import_episodes([out], format_, back, Foreign()).there == 2
    assert sorted(p.name for p in back.iterdir()) == ["a", "b"]


def write_aloha(path: Path, count: int = 40, jpeg: bool = False) -> np.ndarray:
    """A file as record_episodes.py writes it; returns the images of cam_left_wrist."""
    joints = aloha_from_positions(np.tile(REST_POSE, (count, 1)))
    joints[:, 6] = np.linspace(-0.2, 1.0, count)  # a leader squeezes
    y, x = np.mgrid[:48, :64]
    images = np.stack([np.stack([4 * x, 5 * y, np.full_like(x, 5 * t)], -1).astype(np.uint8) for t in range(count)])
    with h5py.File(path, "w") as file:
        file.attrs["sim"], file.attrs["compress"] = False, jpeg
        for name in ("action", "observations/qpos", "observations/qvel", "observations/effort"):
            file[name] = joints.astype(np.float32)
        for camera in ("cam_high", "cam_left_wrist"):
            if jpeg:
                codes = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel() for image in images]
                padded = np.zeros((count, max(map(len, codes))), np.uint8)
                for row, code in zip(padded, codes, strict=True):
                    row[: len(code)] = code
                file[f"observations/images/{camera}"] = padded
            else:
                file[f"observations/images/{camera}"] = images
        file["base_action"] = np.zeros((count, 2))
    return images


@pytest.mark.parametrize("jpeg", [False, True])
def test_a_file_of_an_aloha_without_depth_comes_in_with_a_plain_word(jpeg, tmp_path, capsys):
    images = write_aloha(tmp_path / "episode_0.hdf5", jpeg=jpeg)
    words = ["bag", "import", str(tmp_path), "--from", "aloha_hdf5", "--out", str(tmp_path / "bags"), "--task", "stack",
             "--image-every", "5", "--intrinsics", "wrist_left=50,51,31.5,23.5"]  # fmt: skip
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for text in ("images of cam_high, which is no camera of this stack", "rows of /base_action", "without depth",
                 "policy.tokens: none", "grippers' positions have beyond 0 to 1"):  # fmt: skip
        assert text in out
    report = audit(tmp_path / "bags/episode_0")
    assert report.ok and any("no depth" in note for note in report.notes)
    with Episode.open(tmp_path / "bags/episode_0") as episode:
        assert episode.cameras == () and episode.color_only == ("wrist_left",)
        assert episode.metadata.task == "stack"
        frames = episode.frames("wrist_left")
        assert len(frames) == 8 and frames.pinhole.fx == 50.0
        assert np.abs(frames.color(3).astype(int) - images[15]).max() <= (16 if jpeg else 0)
        with pytest.raises(RecordError, match="no depth of wrist_left"):
            frames.depth_mm(0)
        assert episode.joint_states.positions[:, 6].min() == 0.002  # within the finger's range, not beyond
        np.testing.assert_allclose(np.diff(episode.commands.stamps_ns), CONTROL_PERIOD_NS)


def test_depth_of_others_is_kept_where_it_stands_in_its_place(tmp_path):
    write_aloha(tmp_path / "episode_0.hdf5")
    depth = np.random.default_rng(0).integers(0, 9999, (40, 48, 64), dtype=np.uint16)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file["observations/depth/cam_left_wrist"] = depth
    told = import_episodes([tmp_path / "episode_0.hdf5"], "aloha_hdf5", tmp_path / "bags", Foreign())
    assert told.notes == []
    with Episode.open(tmp_path / "bags/episode_0") as episode:
        assert np.array_equal(episode.frames("wrist_left").depth_mm(7), depth[7])


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def _other_robot(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["observations/qpos"]
        file["observations/qpos"] = np.zeros((40, 7))


def _other_layout(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.move("observations/qpos", "observations/state")


def _not_a_number(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["action"][3, 3] = np.nan


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_truncated, "no HDF5 file, or is truncated"),
        (_other_robot, r"/observations/qpos of .* is \(40, 7\), expected \(40, 14\)"),
        (_other_layout, "lacks /observations/qpos; it has .*/observations/state"),
        (_not_a_number, "actions of 1 rows are not finite, the first is row 3"),
    ],
)
def test_a_bad_file_is_refused_and_the_others_come_in(spoil, expected, tmp_path):
    write_aloha(tmp_path / "episode_0.hdf5")
    write_aloha(tmp_path / "episode_1.hdf5")
    spoil(tmp_path / "episode_0.hdf5")
    told = import_episodes([tmp_path], "aloha_hdf5", tmp_path / "bags", Foreign())
    assert told.done == 1 and len(told.refused) == 1
    assert "episode_0.hdf5: " in told.refused[0]
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(told.refused[0])
    assert [p.name for p in (tmp_path / "bags").iterdir()] == ["episode_1"]


def test_the_hdf5_layout_is_that_of_aloha(bags, tmp_path):
    export_bags([bags], "aloha_hdf5", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["episode_0.hdf5", "episode_1.hdf5"]
    with h5py.File(tmp_path / "episode_0.hdf5") as file:
        assert file.attrs["sim"] and not file.attrs["compress"]
        assert file["action"].shape == file["observations/qpos"].shape == file["observations/qvel"].shape == (TICKS, 14)
        assert file["observations/images/front_left"].shape == (TICKS, 48, 64, 3)
        depth = file["observations/depth/wrist_left"]
        assert depth.shape == (TICKS, 32, 40) and depth.dtype == np.uint16 and depth.attrs["unit"] == "mm"
        k = file["clamp/cameras/wrist_left/intrinsics"][()]
        assert np.array_equal(k, PINHOLES["wrist_left"].k)
        assert file["clamp/cameras/wrist_left/world_from_camera"].shape == (TICKS, 4, 4)
        gripper = (joints_at(10)[6] - 0.002) / 0.035
        np.testing.assert_allclose(file["observations/qpos"][10, 6], gripper)


def test_the_lerobot_layout_is_that_of_version_3(bags, tmp_path):
    export_bags([bags], "lerobot", tmp_path)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 50 and info["splits"] == {"train": "0:2"}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, TICKS + 60, 1)
    features = info["features"]
    assert features["action"]["names"] == list(MOTOR_NAMES)
    depth = features["observation.images.front_left_depth"]
    assert depth["dtype"] == "image" and depth["shape"] == [48, 64, 1]
    assert depth["info"] == {"is_depth_map": True, "depth_unit": "mm"}
    data = pq.read_table(tmp_path / "data/chunk-000/file-001.parquet")
    assert data.column_names == list(features) and len(data) == 60
    assert data["index"].to_pylist() == list(range(TICKS, TICKS + 60))
    np.testing.assert_allclose(data["timestamp"].to_numpy(), np.arange(60) / 50, atol=1e-6)
    code = data["observation.images.front_left_depth"][0].as_py()["bytes"]
    image = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None and image.dtype == np.uint16 and np.array_equal(image, image_of("front_left", 0)[1])
    note = json.loads(data.schema.metadata[b"huggingface"])
    assert note["info"]["features"]["observation.images.front_left"] == {"_type": "Image"}
    episodes = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(e["dataset_from_index"], e["dataset_to_index"]) for e in episodes] == [(0, TICKS), (TICKS, TICKS + 60)]
    tasks = pq.read_table(tmp_path / "meta/tasks.parquet")
    assert tasks.to_pylist() == [{"task_index": 0, "task": "mug_on_plate"}]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    assert np.shape(stats["observation.images.front_left"]["mean"]) == (3, 1, 1)
    assert stats.keys() == features.keys() - {"clamp.task_state"}
    both = np.concatenate([_column(tmp_path / f"data/chunk-000/file-00{i}.parquet", "action") for i in (0, 1)])
    np.testing.assert_allclose(stats["action"]["mean"], both.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], both.std(axis=0), rtol=1e-4)


def _column(path: Path, key: str) -> np.ndarray:
    return np.array(pq.read_table(path, columns=[key])[key].to_pylist())


def test_statistics_of_parts_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(size=(70, 3)) * [1.0, 5.0, 0.1]
    whole, parts = (
        statistics.of_values(values),
        statistics.together([statistics.of_values(v) for v in np.split(values, [20])]),
    )
    for key in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(parts[key], whole[key], err_msg=key)


def _spoil_info(folder: Path, **changes) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_lerobot_dataset_of_another_kind_is_refused(bags, tmp_path):
    export_bags([bags / "b"], "lerobot", tmp_path)
    info = json.loads((tmp_path / "meta/info.json").read_text())

    def refused(match: str, **changes) -> None:
        _spoil_info(tmp_path, **changes)
        with pytest.raises(RecordError, match=match):
            import_episodes([tmp_path], "lerobot", tmp_path / "bags", Foreign())
        _spoil_info(tmp_path, **info)

    refused("of format v2.1, expected v3.0", codebase_version="v2.1")
    refused("has 30 rows a second, expected 50", fps=30)
    other = {**info["features"]["action"], "names": ["shoulder_pan.pos", *MOTOR_NAMES[1:]]}
    refused(r"missing \['left_waist'\], unknown \['shoulder_pan'\]", features={**info["features"], "action": other})
    data = tmp_path / "data/chunk-000/file-000.parquet"
    data.write_bytes(data.read_bytes()[:-3000])
    told = import_episodes([tmp_path], "lerobot", tmp_path / "bags", Foreign())
    assert told.done == 0 and "missing, damaged or truncated" in told.refused[0]


def test_what_is_said_of_an_episode_is_not_taken_for_another(bags, tmp_path):
    make_bag(tmp_path / "in/c", ticks=60, offset=0.02)  # as long as b, and other joints
    export_bags([bags / "b", tmp_path / "in"], "lerobot", tmp_path / "out")
    facts = [tmp_path / f"out/meta/clamp/episode-00000{i}.json" for i in (0, 1)]
    facts[1].replace(facts[0])  # as after lerobot has taken episode 0 out, but for the tables
    told = import_episodes([tmp_path / "out"], "lerobot", tmp_path / "bags", Foreign())
    assert told.done == 2
    assert sorted(p.name for p in (tmp_path / "bags").iterdir()) == ["out_000000", "out_000001"]


def test_joints_in_another_order_find_their_places():
    order = joint_order([f"{name}.pos" for name in reversed(MOTOR_NAMES)], "x")
    assert order.tolist() == list(range(13, -1, -1))
    positions = np.asarray(REST_POSE)[None] + 0.001
    np.testing.assert_allclose(positions_from_aloha(aloha_from_positions(positions)), positions, atol=1e-16)
    wide, count = clip_grippers(np.full((2, 14), 0.5))
    assert count == 2 and wide[0, 6] == wide[1, 13] == 0.037 and wide[0, 0] == 0.5


def test_bags_that_do_not_fit_are_refused_one_by_one(bags, tmp_path):
    make_bag(tmp_path / "in/flat", ticks=50, efforts=False)
    export_bags([bags / "b"], "lerobot", tmp_path / "out")
    told = export_bags([tmp_path / "in", bags / "a"], "lerobot", tmp_path / "out")
    assert told.done == 1 and "flat differs from the episodes before it in observation.effort" in told.refused[0]
    with pytest.raises(RecordError, match="two bags are called b"):
        export_bags([bags / "b", bags], "lerobot", tmp_path / "out")
    other = tmp_path / "data/other"
    other.mkdir(parents=True)
    (other / "thesis.txt").write_text("not a dataset")
    with pytest.raises(RecordError, match="no export of this stack"):
        export_bags([bags / "b"], "lerobot", other)
    write_aloha(tmp_path / "episode_0.hdf5")
    with pytest.raises(RecordError, match="no export of this stack"):
        export_bags([bags / "b"], "aloha_hdf5", tmp_path)


def test_a_bag_without_depth_goes_out_and_comes_back(tmp_path):
    make_bag(tmp_path / "in/flat", ticks=30, depth=False)
    for format_ in FORMATS:
        export_bags([tmp_path / "in"], format_, tmp_path / format_)
        told = import_episodes([tmp_path / format_], format_, tmp_path / f"back_{format_}", Foreign())
        assert told.done == 1 and "front_left, wrist_left came without depth" in told.notes[0]
        with BagRecording(tmp_path / "in/flat") as before, BagRecording(tmp_path / f"back_{format_}/flat") as after:
            assert_same(before, after, 1.2e-7)


def test_a_bag_is_not_imported_over_another(bags, tmp_path):
    export_bags([bags / "b"], "aloha_hdf5", tmp_path)
    with BagRecording(bags / "a") as recording:
        write_bag(recording, tmp_path / "bags/b")
    told = import_episodes([tmp_path], "aloha_hdf5", tmp_path / "bags", Foreign())
    assert told.done == 0 and "does not come from episode_0.hdf5" in told.refused[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["export", "/nowhere", "--to", "rlds", "--out", "x"], "invalid choice"),
        (["export", "/nowhere", "--to", "lerobot", "--out", "x"], "is no bag and holds none"),
        (["import", "/nowhere", "--from", "lerobot", "--out", "x"], "lacks meta/info.json"),
        (["import", ".", "--from", "aloha_hdf5", "--out", "x"], "holds no .hdf5 file"),
        (["import", ".", "--from", "aloha_hdf5", "--out", "x", "--camera", "high"], "expected NAME=VALUE"),
        (["import", ".", "--from", "lerobot", "--out", "x", "--intrinsics", "wrist_left=1,2"], "expected FX,FY,CX,CY"),
        (
            ["import", ".", "--from", "lerobot", "--out", "x", "--intrinsics", "wrist_lef=1,2,3,4"],
            "did you mean 'wrist_left'",
        ),
        (["import", ".", "--from", "lerobot", "--out", "x", "--image-every", "0"], "expected at least 1"),
    ],
)
def test_a_mistake_is_named_in_one_line(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bag", *words]) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
