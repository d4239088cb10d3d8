"""How well `clamp calibrate` recovers known poses of all cameras in MuJoCo, over several seeds, and where time goes.

    python test/bench/bench_calibration.py                             # 848x480, 4 places x 3 shots, 3 seeds
    python test/bench/bench_calibration.py --size 640x360 --seeds 1 --keep data/sessions

Each seed has other poses of the arms, other noise and another wrong start. Printed are each camera's error, the
uncertainty that the solution claims, and processor seconds of finding corners and of the adjustment. Noise: grey values
3 of 255, a lens blur of half a pixel, joints rounded to encoder steps (2 pi / 4096) after 0.3 mrad, depth of a D435.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from calibration_scene import Scene, board_places, mounts
from calibration_synthetic import shifted

from clamp_ros.calibration import quality
from clamp_ros.calibration.board import Board
from clamp_ros.calibration.poses import looking_poses
from clamp_ros.calibration.session import Session
from clamp_ros.calibration.solve import distance, observe, solve


def main() -> int:
    """Prints the figures; exit code 1 if a camera is off by more than 1 mm or 0.1 degree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="848x480")
    parser.add_argument("--places", type=int, default=4)
    parser.add_argument("--shots", type=int, default=3, help="at each place")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="leave the sessions in this folder; those there are read, not drawn")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    board, worst = Board(), (0.0, 0.0)
    with tempfile.TemporaryDirectory() as scratch, Scene(board, width, height) as scene:
        for seed in range(args.seeds):
            rng = np.random.default_rng(seed)
            folder = (args.keep or Path(scratch)) / f"{args.size}_{args.places}x{args.shots}_{seed}"
            session = Session.create(folder, board, mounts())
            if not session.shots():
                for place, world_from_board in enumerate(board_places(board, args.places)):
                    for joints in looking_poses(board, scene.cameras, world_from_board, args.shots, rng):
                        session.add(scene.shoot(joints, world_from_board, place, rng))
            began = time.process_time()
            observed = observe(session)
            found = time.process_time()
            solution = solve(observed, shifted(scene.truth, seed=seed))
            solved = time.process_time()
            grade = quality.report(observed, solution).grade.name.lower()
            print(f"seed {seed}: corners {found - began:.1f} s, adjustment {solved - found:.1f} s of CPU; "
                  f"board {solution.scale[0]:.5f}; verdict {grade}")  # fmt: skip
            for name, figures in solution.figures.items():
                mm, deg = distance(solution.cameras[name], scene.truth[name])
                worst = max(worst[0], mm), max(worst[1], deg)
                print(f"  {name:12} {mm:.2f} mm {deg:.3f} deg  (said: {figures.sigma_mm:.2f} mm "
                      f"{figures.sigma_deg:.3f} deg)  {figures.views:2} views, {figures.rms_px:.2f} px; "
                      f"started {figures.moved_mm:.0f} mm {figures.moved_deg:.1f} deg off")  # fmt: skip
    print(f"largest: {worst[0]:.2f} mm, {worst[1]:.3f} deg")
    return int(worst[0] > 1.0 or worst[1] > 0.1)


if __name__ == "__main__":
    sys.exit(main())
