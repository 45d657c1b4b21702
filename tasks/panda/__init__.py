"""Tasks of the Panda arm."""
