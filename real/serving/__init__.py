"""Policies over the network."""
