"""The control loop and what keeps it safe."""
