"""The arms' motors: registers, units, the port, the bus, the two follower arms, and their node."""
