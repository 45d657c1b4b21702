"""The smallest robot: two carts on rails that go where they are told, at once."""

import numpy as np

from penspin_style.deploy.policy import NoActionError
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from real.robot import Observation, StoppedError

DT = 0.05
CHANNELS = (
    ActionChannel("left", "m", 0.1, -1.0, 1.0, "delta"),
    ActionChannel("right", "m", 0.1, -1.0, 1.0, "delta"),
)


def card(history=1):
    """Of a policy that reads the places and the count of control steps."""
    features = (Feature("place", (2,), "m", history=history), Feature("count", (), "1"))
    return PolicyCard("carts", (Input("state", features),), CHANNELS, (), DT, run="test")


class Carts:
    """In fast time: a command lets one control step pass. Tells everything that was done to it."""

    channels = CHANNELS
    control_dt = DT

    def __init__(self):
        self.features = {f.name: f for f in (Feature("place", (2,), "m"), Feature("count", ()))}
        self.told = []
        self.time = 0.0
        self.broken = None  # raised by the next observe
        self.length = 1000
        self.place = np.zeros(2)

    def clock(self):
        return self.time

    @property
    def target(self):
        return self.place.copy()

    @property
    def done(self):
        return self.count >= self.length

    def measures(self):
        return {"success": bool(self.place[0] >= 0.5), "way": float(np.abs(self.place).sum())}

    def connect(self):
        self.told.append("connect")

    def disconnect(self):
        self.told.append("disconnect")

    def reset(self, start=None):
        self.told.append("reset")
        places = [float(np.ravel((start or {}).get(c.name, 0.0))[0]) for c in CHANNELS]
        self.place = np.array(places)
        self.count, self.stopped = 0, False

    def observe(self):
        if self.broken is not None:
            raise self.broken
        values = {"place": self.place.astype(np.float32), "count": np.float32(self.count)}
        return Observation(values, self.time, self.place.copy())

    def command(self, target):
        if self.stopped:
            raise StoppedError("stopped")
        self.told.append(target.copy())
        self.place = target.copy()
        self.count += 1
        self.time += DT
        return target.copy()

    def hold(self):
        self.told.append("hold")

    def stop(self):
        self.told.append("stop")
        self.stopped = True


class Script:
    """A policy that gives these actions, one after the other; None for none in time."""

    deadline = float("inf")

    def __init__(self, actions, history=1):
        self.card = card(history)
        self.actions = list(actions)
        self.seen, self.deadlines, self.episodes = [], [], 0

    def reset(self):
        self.episodes += 1
        self.seen, self.deadlines, self.left = [], [], list(self.actions)

    def act(self, inputs):
        if not self.episodes or not hasattr(self, "left"):
            return np.zeros(2, np.float32)  # asked whether it is there
        self.seen.append({k: v.copy() for k, v in inputs.items()})
        self.deadlines.append(self.deadline)
        action = self.left.pop(0) if self.left else (0.0, 0.0)
        if action is None:
            raise NoActionError("it has none")
        return np.array(action, np.float32)
