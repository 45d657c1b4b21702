"""The objects that come with the package: where they are, and which are kept for evaluation."""

import pathlib

OBJECTS = pathlib.Path(__file__).parent / "objects"
"""A folder for each object; `scripts/make_objects.py` has made them."""
TRAINING = ("box", "cylinder", "bottle", "pillow", "bowl", "mug", "t_block")
HELD_OUT = ("egg", "cup", "letter_l")
"""Never trained on: another superquadric, another vessel, another letter."""
