"""Scanned objects: meshes and point clouds are checked, repaired and made ready for MuJoCo."""
