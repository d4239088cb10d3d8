"""Domain randomisation: how the scene looks and how its cameras see, drawn anew for every episode from its seed.

Nothing here changes the physics: a seed plays the same episode with it and without. Each aspect has a strength: 0 is
off, 1 the usual spread, given at its draw below, and other numbers scale it. Aspects are drawn independently, so that
switching one on does not change another.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.config import check, param, unknown_key
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.views import WORLD_FRAME
from clamp_ros.geometry.transforms import axis_angle, make, quat_xyzw_from_rotation
from clamp_ros.sim.cameras import CameraConfig, DepthFaults

_SURFACES = ("table", "floor")
"""Materials that may get any colour; those of the robot and of things keep their hue, nearly."""
_D435_BASELINE_M, _D405_BASELINE_M = 0.050, 0.018
_D435_MIN_M, _D405_MIN_M = 0.105, 0.070
_D435_NOISE_M = 0.007
"""At 1 m and 424x240: 0.08 pixels of disparity."""


@dataclass(frozen=True)
class Randomisation:
    """Strengths of what is drawn for each episode."""

    light: float = param(0.0, "brightness, colour and direction of the lights", minimum=0.0, maximum=3.0)
    colours: float = param(0.0, "of table, floor, things and robot", minimum=0.0, maximum=3.0)
    camera: float = param(0.0, "poses and fields of view of the cameras, told truthfully", minimum=0.0, maximum=3.0)
    depth: float = param(0.0, "noise, holes, ragged and shadowed edges of stereo depth", minimum=0.0, maximum=3.0)
    latency: float = param(0.0, "from measurement to publication", minimum=0.0, maximum=3.0)

    def __post_init__(self) -> None:
        check(self)

    @property
    def active(self) -> bool:
        """Whether anything is drawn at all."""
        return any(asdict(self).values())

    @classmethod
    def parse(cls, text: str) -> Randomisation:
        """From words such as `all`, `light,colours`, or `all,camera=0.5`.

        Raises:
            ConfigError: an aspect is unknown, or a strength is no number or out of range.
        """
        names = [field.name for field in fields(cls)]
        strengths: dict[str, float] = {}
        for word in filter(None, (word.strip() for word in text.split(","))):
            name, _, strength = word.partition("=")
            if name not in (*names, "all"):
                raise unknown_key(name, (*names, "all"), "aspect of --randomise")
            try:
                value = float(strength or 1.0)
            except ValueError:
                raise ConfigError(f"strength of {name} is {strength!r}, expected a number, 0 to 3") from None
            strengths |= dict.fromkeys(names if name == "all" else (name,), value)
        return cls(**strengths)


@dataclass(frozen=True, eq=False)
class Scene:
    """What was drawn for one episode.

    Attributes:
        appearance: of the model, as `set_appearance` takes it.
        cameras: by name.
        image_latency_s, joint_latency_s: from measurement to publication, on top of what is configured.
        seed: of the episode.
        randomisation: the strengths.
    """

    appearance: NDArray[np.float64]
    cameras: dict[str, CameraConfig]
    image_latency_s: float
    joint_latency_s: float
    seed: int
    randomisation: Randomisation

    def to_dict(self) -> dict[str, Any]:
        """For a bag's metadata, as plain JSON values; colours and lights follow from strengths and seed."""
        return {
            "strengths": asdict(self.randomisation),
            "image_latency_s": self.image_latency_s,
            "joint_latency_s": self.joint_latency_s,
            "cameras": {name: camera.to_dict() for name, camera in self.cameras.items()},
        }


class Randomiser:
    """Draws scenes for a model and its cameras, whose present looks are the middle of what is drawn."""

    def __init__(
        self, randomisation: Randomisation, model: mujoco.MjModel, cameras: Mapping[str, CameraConfig]
    ) -> None:
        self._randomisation = randomisation
        self._cameras = dict(cameras)
        self._materials = [model.material(i).name for i in range(model.nmat)]
        self._rgba, self._diffuse = model.mat_rgba.copy(), model.light_diffuse.copy()
        self._direction = model.light_dir.copy()
        self._headlight = np.array([model.vis.headlight.ambient, model.vis.headlight.diffuse])

    def scene(self, seed: int) -> Scene:
        """What belongs to a seed; the same for the same seed, strengths, model and cameras."""
        strengths = self._randomisation
        rgba = self._colours(_rng(seed, "colours"), strengths.colours)
        lights = self._lights(_rng(seed, "light"), strengths.light)
        latency = strengths.latency * _rng(seed, "latency").uniform((0.0, 0.0), (0.15, 0.04))
        return Scene(
            np.concatenate([rgba.ravel(), *(part.ravel() for part in lights)]),
            {name: self._camera(camera, seed) for name, camera in self._cameras.items()},
            *(round(float(seconds), 4) for seconds in latency),
            seed=seed,
            randomisation=strengths,
        )

    def _colours(self, rng: np.random.Generator, strength: float) -> NDArray[np.float64]:
        """Table and floor take any hue; the rest varies by 20 degrees of hue and a third of saturation and value."""
        rgba = self._rgba.copy()
        for i, name in enumerate(self._materials):
            hue, saturation, value = colorsys.rgb_to_hsv(*(float(c) for c in rgba[i, :3]))
            draw = rng.uniform(-1.0, 1.0, 3)
            if name in _SURFACES:
                wild = colorsys.hsv_to_rgb(0.5 + 0.5 * draw[0], 0.35 + 0.3 * draw[1], 0.55 + 0.3 * draw[2])
                share = min(strength * abs(float(rng.normal(0.0, 0.6))), 1.0)
                rgba[i, :3] += share * (np.array(wild) - rgba[i, :3])
                continue
            hue = (hue + strength * draw[0] / 18.0) % 1.0
            saturation, value = (float(np.clip(x * (1.0 + strength * d / 3.0), 0.0, 1.0))
                                 for x, d in ((saturation, draw[1]), (value, draw[2])))  # fmt: skip
            rgba[i, :3] = colorsys.hsv_to_rgb(hue, saturation, value)
        return rgba

    def _lights(self, rng: np.random.Generator, strength: float) -> tuple[NDArray[np.float64], ...]:
        """Each light a third brighter or darker (standard deviation), tinted by 10 %, from 15 degrees aside."""
        count = len(self._diffuse)
        brightness = np.exp(0.35 * strength * np.clip(rng.standard_normal((count, 1)), -2.0, 2.0))
        warm = 0.1 * strength * np.clip(rng.standard_normal((count, 1)), -2.0, 2.0)
        tint = 1.0 + warm * np.array([[1.0, 0.0, -1.0]])
        turns = np.deg2rad(15.0) * strength * np.clip(rng.standard_normal((count, 2)), -2.0, 2.0)
        direction = np.stack([
            axis_angle((1.0, 0.0, 0.0), float(about_x)) @ axis_angle((0.0, 1.0, 0.0), float(about_y)) @ towards
            for (about_x, about_y), towards in zip(turns, self._direction, strict=True)
        ]) if count else self._direction  # fmt: skip
        headlight = self._headlight * np.exp(0.25 * strength * np.clip(rng.standard_normal((2, 1)), -2.0, 2.0))
        return np.clip(self._diffuse * brightness * tint, 0.0, 1.0), direction, np.clip(headlight, 0.0, 1.0)

    def _camera(self, camera: CameraConfig, seed: int) -> CameraConfig:
        """Fixed cameras by 10 mm and 1 degree, those on a wrist by a third of it (standard deviations); lens by 1 %."""
        camera = replace(camera, faults=replace(camera.faults, seed=seed))
        strength, corner = self._randomisation.camera, camera.frame == WORLD_FRAME
        if strength:
            draw = np.clip(_rng(seed, f"camera {camera.name}").standard_normal(7), -2.0, 2.0)
            moved = strength * (1.0 if corner else 0.33) * draw
            pose = camera.frame_from_camera
            turn = np.deg2rad(1.0) * moved[3:6]
            angle = float(np.linalg.norm(turn))
            aside = make(axis_angle(turn / max(angle, 1e-12), angle), 0.010 * moved[:3])
            x, y, z = (pose @ aside)[:3, 3].tolist()
            quat = quat_xyzw_from_rotation((pose @ aside)[:3, :3]).tolist()
            fovy_deg = float(np.clip(camera.fovy_deg * (1.0 + 0.01 * strength * draw[6]), 1.0, 150.0))
            camera = replace(
                camera, position_m=(x, y, z), quat_xyzw=(quat[0], quat[1], quat[2], quat[3]), fovy_deg=fovy_deg
            )
        strength = self._randomisation.depth
        if strength:
            noise, holes, edges = _rng(seed, f"depth {camera.name}").uniform((0.3, 0.0, 0.3), (1.5, 0.02, 1.0))
            faults = DepthFaults(
                noise_m=min(float(strength * noise * _D435_NOISE_M), 1.0),
                hole_fraction=min(float(strength * holes), 1.0),
                min_m=_D435_MIN_M if corner else _D405_MIN_M,
                seed=seed,
                edge_px=float(strength * edges),
                baseline_m=_D435_BASELINE_M if corner else _D405_BASELINE_M,
            )
            camera = replace(camera, faults=faults)
        return camera


def set_appearance(model: mujoco.MjModel, appearance: NDArray[np.float64]) -> None:
    """Gives a model the colours and lights of `Scene.appearance`; a model of the same size as it was drawn for."""
    rgba, lights = 4 * model.nmat, 3 * model.nlight
    model.mat_rgba[:] = appearance[:rgba].reshape(-1, 4)
    model.light_diffuse[:] = appearance[rgba : rgba + lights].reshape(-1, 3)
    model.light_dir[:] = appearance[rgba + lights : rgba + 2 * lights].reshape(-1, 3)
    model.vis.headlight.ambient[:] = appearance[-6:-3]
    model.vis.headlight.diffuse[:] = appearance[-3:]


def _rng(seed: int, aspect: str) -> np.random.Generator:
    return np.random.default_rng([seed, *aspect.encode()])
