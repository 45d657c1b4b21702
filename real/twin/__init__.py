"""Simulated twins of robots."""
