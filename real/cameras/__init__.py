"""Cameras beside a robot: what they see, as the policy was trained on it."""
