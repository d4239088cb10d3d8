"""The simulated robot, its world, tasks, experts and cameras; the same topics as the hardware."""
