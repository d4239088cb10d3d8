"""Depth images become one cloud, and the cloud becomes the five virtual views that the policy sees."""
