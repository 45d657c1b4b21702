"""Torch bricks, and the policies made of them. A policy holds its normaliser and its squash."""
