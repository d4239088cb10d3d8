"""Datasets of other stacks: episodes written as ALOHA HDF5 files or a LeRobot dataset, and bags made of such."""
