"""The stock ALOHA client of OpenPI before a policy of ours: `penspin serve FILE --adapter aloha`.

| the client's | is for the policy |
| --- | --- |
| `state` (14,): joints in rad, grippers 0 (closed) to 1 (open) | `description.PROPRIOCEPTION` |
| `images`: of `CAMERAS`, (3, height, width) uint8 | `CAMERA_rgb`, cropped and averaged down |
| `images`: `cam_left_wrist_depth`, ..., (height, width) m | `CAMERA_depth`, its nearest pixels |
| `prompt`, other images | not read |

The reply's `actions` (horizon, 14) are absolute targets in the units of `state`, ready for the
client to send. Histories and delays, the height switch and the targets that actions add to are kept
here, one of each for a connection: the client itself remembers nothing, and its `reset` says
nothing. So an episode is a connection. The first action adds to where the arms are measured, the
following ones to the last target of the reply before, which the client is taken to have sent.

OpenPI's example deletes depth images before it asks. For a policy that reads them it must keep
them; nothing else of it changes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from penspin_style.deploy.actions import Decoder
from penspin_style.deploy.bundle import BundleError, ObservationError, check_features
from penspin_style.deploy.history import Observer
from penspin_style.deploy.policy import Policy, fork, horizon_of
from penspin_style.features import Feature, PolicyCard
from real.cameras.fit import Crop, fit, largest
from real.serving.server import ServeError
from tasks.robots.aloha.description import (
    ARM,
    CHANNELS,
    JOINTS,
    PROPRIOCEPTION,
    SIDES,
    UNITS,
    denormalize,
    has_switched,
    normalize,
    proprioception,
)

CAMERAS = {
    "wrist_cam_left": "cam_left_wrist",
    "wrist_cam_right": "cam_right_wrist",
    "overhead_cam": "cam_high",
}
"""Our model's camera -> the client's."""
AWAY = 0.25
"""rad that a joint may be from its last target; farther, somebody else has moved the arms."""
LARGEST = (480, 640)
"""Height and width of the largest image: that of the stock cameras, 4:3."""
_MOST_IMAGES, _MOST_NAMES = 8, 8
_ABSURD = 100.0
"""No joint's angle, rad, and no gripper's opening."""
_IS_JOINT = np.arange(len(JOINTS)) % len(CHANNELS) < len(ARM)


class StockRequest:
    """What a request may hold; see `real.serving.protocol.Expected`.

    max_frame: bytes that a request can need: four images as large as the cameras', and the depth
        that the policy sees.
    """

    def __init__(self, images: Mapping[str, Feature]) -> None:
        """images: the client's images that the policy sees, and the feature of each."""
        self.images = images
        depths = sum(feature.dtype == "float32" for feature in images.values())
        self.max_frame = (4 * 3 + 4 * depths) * LARGEST[0] * LARGEST[1] + 64 * 2**10

    def check(self, observation: Mapping[str, Any]) -> None:
        """Refuse what is no observation of a stock client's, before anything is computed of it.

        Raises:
            ObservationError: says what it should be.
        """
        images = observation.get("images", {})
        if len(observation) > _MOST_NAMES or not isinstance(images, dict):
            raise ObservationError("send `state`, `images` by camera, and at most a few names more")
        if len(images) > _MOST_IMAGES:
            raise ObservationError(f"{len(images)} images; send at most {_MOST_IMAGES}")
        state = _array("`state`", observation.get("state"))
        if state.shape != (len(JOINTS),) or state.dtype.kind not in "fiu":
            raise ObservationError(
                f"`state` must be ({len(JOINTS)},) numbers, six joints and a gripper of each arm; "
                f"got {state.shape} of {state.dtype}"
            )
        if not (np.abs(state) < _ABSURD).all():  # a NaN is not either
            worst = int(np.argmin(np.abs(state) < _ABSURD))
            raise ObservationError(f"`state` of {JOINTS[worst]} is {state[worst]}")
        for camera, feature in self.images.items():
            self._check_image(camera, feature, images.get(camera))

    def _check_image(self, camera: str, feature: Feature, image: Any) -> None:
        is_depth = feature.dtype == "float32"
        form = "(height, width) float32 in m" if is_depth else "(3, height, width) uint8"
        if image is None:
            why = "; OpenPI's example deletes depth images, keep them" if is_depth else ""
            raise ObservationError(f"`images` lacks {camera!r}, which the policy sees: {form}{why}")
        array = _array(f"the image {camera!r}", image)
        leading = () if is_depth else (3,)
        if array.dtype != feature.dtype or array.shape[:-2] != leading or array.ndim < 2:
            raise ObservationError(
                f"the image {camera!r} must be {form}, got {array.shape} of {array.dtype}"
            )
        height, width = array.shape[-2:]
        if height > LARGEST[0] or width > LARGEST[1]:
            raise ObservationError(
                f"the image {camera!r} is {width} x {height}; at most {LARGEST[1]} x {LARGEST[0]}"
            )
        high, wide = feature.shape[:2]
        rows, columns = _crop(height, width, high, wide)
        if rows < high or columns < wide:
            raise ObservationError(
                f"of the image {camera!r}, {width} x {height}, {columns} x {rows} are seen; the "
                f"policy needs {wide} x {high}"
            )
        if is_depth and not (array >= 0.0).all():  # a NaN is not either
            raise ObservationError(
                f"the image {camera!r} has pixels below 0 m, or NaN: 0 is where nothing came back"
            )
        if is_depth and not np.isfinite(array).all():
            raise ObservationError(f"the image {camera!r} has pixels that are infinitely far")


class AlohaAdapter:
    """A policy of ALOHA's arms that takes and gives what the stock client does.

    It keeps the contract of `penspin_style.deploy.policy`, except that it answers targets. It has
    `expected` and `hello`, as `real.serving.protocol` says.
    """

    def __init__(self, policy: Policy) -> None:
        """Check that the policy can be served so, and begin an episode.

        Raises:
            ServeError: it reads what the stock client does not send, or commands another robot.
        """
        self.policy, self.card = policy, policy.card
        self.sha256 = getattr(policy, "sha256", "")
        self._images = _images(self.card)
        self.expected = StockRequest({_theirs(f.name): f for f in self._images})
        self._decoder, self._observer = Decoder(self.card), Observer(self.card)
        self.reset()

    @property
    def horizon(self) -> int:
        """Targets of a reply."""
        return horizon_of(self.policy)

    def fork(self) -> "AlohaAdapter":
        """Return another one, for an episode at the same time."""
        return AlohaAdapter(fork(self.policy))

    def reset(self) -> None:
        """Begin an episode."""
        self.policy.reset()
        self._observer.reset()
        self._target: np.ndarray | None = None
        self._has_switched = False

    def hello(self, said: dict[str, Any]) -> dict[str, Any]:
        """Return what a client is told first, of what it would be told of the policy itself.

        The card is left out: its actions are not those of the replies.
        """
        out = {key: value for key, value in said.items() if key != "card"}
        units = ["1" if name.endswith("gripper") else "rad" for name in JOINTS]
        ends = [normalize(end).tolist() for end in (self._decoder.low, self._decoder.high)]
        out["action"] = {"name": list(JOINTS), "unit": units, "low": ends[0], "high": ends[1]}
        if len(said["reset_pose"]) == len(JOINTS):
            out["reset_pose"] = normalize(np.array(said["reset_pose"])).tolist()
        return {**out, "adapter": "aloha"}

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return absolute targets (14,) float32, or (horizon, 14), in the units of `state`.

        observation: one that `expected` has let pass.

        Raises:
            ObservationError: the arms are not where the last targets were.
        """
        measured = denormalize(observation["state"])
        target = self._last_target(measured)
        self._has_switched = has_switched(measured, self._has_switched)
        values = proprioception(measured, target, switched=self._has_switched)
        for camera, feature in self.expected.images.items():
            values[feature.name] = _fit(np.asarray(observation["images"][camera]), feature)
        actions = self.policy.act(self._observer(values))
        targets = []
        for action in actions.reshape(self.horizon, len(JOINTS)):
            target = self._decoder.decode(action, target)
            targets.append(normalize(target))
        self._target = target
        rows = np.array(targets, np.float32)
        return rows if self.horizon > 1 else rows[0]

    def _last_target(self, measured: np.ndarray) -> np.ndarray:
        """Return what the arms follow; in the first step of an episode where they are.

        Raises:
            ObservationError: they are somewhere else.
        """
        if self._target is None:
            return np.clip(measured, self._decoder.low, self._decoder.high)
        away = np.abs(measured - self._target) * _IS_JOINT
        if away.max() > AWAY:
            worst = int(np.argmax(away))
            raise ObservationError(
                f"{JOINTS[worst]} is {away[worst]:.2f} rad from its last target, the limit is "
                f"{AWAY:g}: connect again for a new episode"
            )
        return self._target


def _array(what: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ObservationError(f"{what} is not an array ({error})") from error


def _images(card: PolicyCard) -> list[Feature]:
    """Return the images that a policy sees, all of them of the client's cameras.

    Raises:
        ServeError: it reads what the client does not send, or commands another robot.
    """
    commands = [(channel.name, channel.unit) for channel in card.actions]
    if commands != list(zip(JOINTS, UNITS * len(SIDES), strict=True)):
        said = [f"{name}, {unit}" for name, unit in commands]
        raise ServeError(
            f"--adapter aloha: the policy of {card.task} commands {said}, not ALOHA's arms in rad "
            "and their grippers in m"
        )
    read = [feature for group in card.inputs for feature in group.features]
    seen = [feature for feature in read if _theirs(feature.name)]
    offered = {f.name: f for f in PROPRIOCEPTION}
    for f in seen:
        size = f.shape[:2]
        is_depth = f.name.endswith("_depth")
        offered[f.name] = (
            Feature(f.name, size, "m") if is_depth else Feature(f.name, (*size, 3), "1", "uint8")
        )
    try:
        check_features(card, offered)
    except BundleError as error:
        raise ServeError(f"--adapter aloha: of a stock client's observation, {error}") from error
    return seen


def _theirs(name: str) -> str:
    """Return what the client calls an image of ours; nothing if it has no such camera."""
    camera, _, kind = name.rpartition("_")
    suffix = {"rgb": "", "depth": "_depth"}.get(kind)
    return "" if suffix is None or camera not in CAMERAS else CAMERAS[camera] + suffix


def _crop(height: int, width: int, high: int, wide: int) -> tuple[int, int]:
    """Return rows and columns of what a policy sees of an image, in its middle.

    The client pads images of 4:3 to another form, with equal bars; what is between them is cropped
    around the middle to the form that the policy sees. An image of the policy's own size is whole.
    """
    if (height, width) == (high, wide):
        return height, width
    columns = min(width, height * LARGEST[1] / LARGEST[0])
    return largest(columns * LARGEST[0] / LARGEST[1], columns, (high, wide))


def _fit(image: np.ndarray, feature: Feature) -> np.ndarray:
    """Return an image as a feature has it: cropped, then averaged; of depth the nearest pixels.

    image: (3, height, width), for (high, wide, 3); or of depth (height, width), for (high, wide).
    """
    size = feature.shape[0], feature.shape[1]
    height, width = image.shape[-2:]
    rows, columns = _crop(height, width, *size)
    crop = Crop((height - rows) // 2, (width - columns) // 2, rows, columns)
    return fit(image if feature.dtype == "float32" else np.moveaxis(image, 0, -1), size, crop)
