"""The Franka Panda arm."""
