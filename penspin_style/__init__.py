"""Take a robot skill the whole way: teacher, student, ONNX, robot, fine-tuning.

Importing this package imports neither torch nor warp: a robot's computer may have none. Import the
room you need, for example `penspin_style.deploy.bundle` or `penspin_style.env.env`.
"""

__version__ = "0.1.0"
