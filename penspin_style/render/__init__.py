"""Pixels: of one world through OpenGL, for films and pictures."""
