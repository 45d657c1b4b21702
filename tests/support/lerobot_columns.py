"""What `data convert --to lerobot` makes of the columns of `tests.support.robots`."""

EXACT = {
    "action": "action",
    "target": "target",
    "sent": "sent",
    "observation.depth": "observation/depth",
    "observation.points": "observation/points",
    "observation.mask": "observation/mask",
    "exact.joint_vel": "observation/joint_vel",
    "exact.count": "observation/count",
    "measure.turns": "measure/turns",
    "time": "time",
}
"""Feature of the data set -> column of the episode, the same number for number."""
STATE = ("count", "joint_pos", "joint_vel", "on")
"""Observations that `observation.state` holds, in this order: as HDF5 lists them."""
