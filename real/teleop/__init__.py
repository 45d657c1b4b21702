"""Robots and twins that are moved by hand, to record demonstrations."""
