"""Trajectories of a teacher, made and repeated."""
