"""Rigid transforms, pinhole cameras, arm kinematics and the time-stamped transform tree. Imports numpy only."""
