"""Drivers of real robots."""

DRIVERS = ("allegro_ros", "allegro_hand_ros", "franka")
"""Their names on the command line; a Franka is `franka:ADDRESS`."""
