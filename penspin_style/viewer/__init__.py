"""See what a policy does: videos, strips, windows."""
