"""Data formats of others."""
