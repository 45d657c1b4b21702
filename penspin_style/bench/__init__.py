"""Measure speed against the bare engine."""
