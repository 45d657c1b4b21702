"""Recorded episodes in HDF5."""
