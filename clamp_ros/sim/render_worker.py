"""A process that draws for `sim.render_pool`: it reads asks from stdin and ends when stdin does.

Started as ``python -m clamp_ros.sim.render_worker MODEL_FD MEMORY_FD STATE_SIZE CAMERAS_JSON``.
"""

from __future__ import annotations

import json
import mmap
import signal
import sys

import mujoco
import numpy as np

from clamp_ros.contract.errors import ClampError
from clamp_ros.sim.cameras import CameraConfig
from clamp_ros.sim.randomise import set_appearance
from clamp_ros.sim.render import Renderer
from clamp_ros.sim.render_pool import Layout


def main() -> int:
    """Serves until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group; the parent ends us
    model_fd, memory_fd, state_size = map(int, sys.argv[1:4])
    layout = Layout(state_size, tuple(CameraConfig.from_dict(values) for values in json.loads(sys.argv[4])))
    model = mujoco.MjModel.from_binary_path(f"/proc/self/fd/{model_fd}")
    data = mujoco.MjData(model)
    state, pictures = layout.views(mmap.mmap(memory_fd, layout.size))
    try:
        renderer = Renderer(model, layout.cameras)
    except ClampError as error:
        print(error, file=sys.stderr)
        return 1
    answer = sys.stdout.buffer
    with renderer:
        answer.write(b".")
        answer.flush()
        for line in sys.stdin.buffer:
            ask = json.loads(line)
            if isinstance(ask, dict):  # another look, for this and all later pictures
                set_appearance(model, np.array(ask["appearance"]))
                renderer.set_cameras(CameraConfig.from_dict(values) for values in ask["cameras"])
                answer.write(b".")
                answer.flush()
                continue
            pos, quat = model.nq, model.nq + 3 * model.nmocap
            data.qpos[:] = state[:pos]
            data.mocap_pos[:] = state[pos:quat].reshape(-1, 3)
            data.mocap_quat[:] = state[quat:].reshape(-1, 4)
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_camlight(model, data)
            for index, frame in ask:
                color, depth_mm = renderer.render(data, layout.cameras[index].name, frame)
                pictures[index][0][:] = color
                pictures[index][1][:] = depth_mm
            answer.write(b".")
            answer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
