"""What every part agrees on: the robot, the interfaces, the observation, the errors. Imports numpy only."""
