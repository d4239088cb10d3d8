"""The arms' motors: registers, units, the bus, the two follower arms, and their node."""
