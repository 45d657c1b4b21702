"""Pixels: of one world through OpenGL, for videos and images."""
