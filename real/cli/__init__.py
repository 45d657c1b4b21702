"""The verbs of robots."""
