"""The images that a policy reads, as values beside a robot (`External`), from cameras.

Which image comes from which camera is in the names: CAMERA_rgb and CAMERA_depth of the card are
what the camera CAMERA of the file sees, cropped and averaged down as in training.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from penspin_style.features import Feature, PolicyCard
from real.cameras.camera import Camera, CameraError, Frame, Newest
from real.cameras.config import DEEP, CameraConfig, make_camera, nearest
from real.cameras.fit import Crop, crop_around, fit
from real.drivers.external import External

_VIEW = re.compile(r"([0-9.]+) degrees of vertical view")
"""In a card's `preprocessing`, as `penspin_style.env.cameras` writes it."""


@dataclass(frozen=True)
class Seen:
    """One image that a policy reads, and the camera that it is of."""

    feature: Feature
    """As in the card, without history."""
    camera: str
    view: float | None
    """Degrees of vertical view that the policy was trained with; None if the card does not say."""

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width."""
        return self.feature.shape[0], self.feature.shape[1]

    @property
    def is_depth(self) -> bool:
        """Whether it is depth, not colours."""
        return self.feature.dtype == "float32"


def images_of(card: PolicyCard) -> list[Seen]:
    """Return the images of cameras that a policy reads."""
    found = []
    for feature in (feature for group in card.inputs for feature in group.features):
        camera, _, kind = feature.name.rpartition("_")
        is_rgb = kind == "rgb" and feature.dtype == "uint8" and feature.shape[2:] == (3,)
        is_depth = kind == "depth" and feature.dtype == "float32" and len(feature.shape) == 2
        if camera and (is_rgb or is_depth):
            said = _VIEW.search(card.preprocessing.get(feature.name, ""))
            plain = dataclasses.replace(feature, history=1, delay=0)
            found.append(Seen(plain, camera, float(said[1]) if said else None))
    return found


def _is_given(image: Seen, configs: Mapping[str, CameraConfig]) -> bool:
    config = configs.get(image.camera)
    return config is not None and (config.kind in DEEP or not image.is_depth)


class Cameras:
    """The cameras of a file, for a policy; opened and closed as a context.

    make: from a configuration to a camera, and whether its depth is wanted.
    """

    def __init__(
        self,
        configs: Mapping[str, CameraConfig],
        card: PolicyCard,
        *,
        make: Callable[..., Camera] = make_camera,
    ) -> None:
        """Match cameras and images.

        Raises:
            ValueError: the policy sees nothing of a camera.
        """
        every = images_of(card)
        self.configs = configs
        self.seen = tuple(image for image in every if _is_given(image, configs))
        self.missing = tuple(i.feature.name for i in every if i not in self.seen)
        """Images that the policy reads and no camera of the file gives."""
        cameras = sorted({image.camera for image in every})
        for name in configs:
            if name not in cameras:
                there = (
                    nearest(name, cameras) or f"; its cameras are {', '.join(cameras) or 'none'}"
                )
                raise ValueError(f"the policy of {card.task} sees no camera {name!r}{there}")
        deep = {image.camera for image in self.seen if image.is_depth}
        self.cameras = {
            name: Newest(make(config, depth=name in deep), name, max_age=config.max_age)
            for name, config in configs.items()
        }

    def __enter__(self) -> "Cameras":
        """Open every camera, and look whether each image can be made of its frames.

        Raises:
            CameraError: one cannot be opened, or its frames are too small or too narrow.
        """
        with contextlib.ExitStack() as opened:
            for camera in self.cameras.values():
                opened.callback(camera.close)
                camera.open()
            for image in self.seen:
                self.image(image, self.cameras[image.camera].read())
            opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        for camera in self.cameras.values():
            camera.close()

    @property
    def sensors(self) -> tuple[External, ...]:
        """Return the images as values beside a robot; to be read while the cameras are open."""
        return tuple(self._sensor(image) for image in self.seen)

    @property
    def notes(self) -> list[str]:
        """Return what is not as in training, or not known to be; of opened cameras."""
        return [
            f"{name}: the policy was trained with {views.pop():g} degrees of vertical view; the "
            "camera's is not known (view), so the largest crop is taken"
            for name, camera in self.cameras.items()
            if self._frame_view(name, camera) is None
            and (views := {i.view for i in self.seen if i.camera == name and i.view})
        ]

    def crop(self, image: Seen, frame: Frame) -> Crop:
        """Return what is seen of a frame.

        Raises:
            CameraError: the frame is too small, or too narrow; names the camera.
        """
        config, camera = self.configs[image.camera], self.cameras[image.camera]
        try:
            return crop_around(
                (frame.rgb.shape[0], frame.rgb.shape[1]),
                image.size,
                center=config.center,
                view=image.view,
                frame_view=self._frame_view(image.camera, camera),
            )
        except ValueError as error:
            raise CameraError(f"camera {image.camera!r}: {error}") from error

    def image(self, image: Seen, frame: Frame) -> np.ndarray:
        """Return the image as the policy reads it.

        Raises:
            CameraError: as `crop`; or the frame has no depth.
        """
        pixels = frame.depth if image.is_depth else frame.rgb
        if pixels is None:
            raise CameraError(f"camera {image.camera!r} gave a frame without depth")
        return fit(pixels, image.size, self.crop(image, frame))

    def _frame_view(self, name: str, camera: Newest) -> float | None:
        stated = self.configs[name].view
        return camera.vertical_view if stated is None else stated

    def _sensor(self, image: Seen) -> External:
        camera = self.cameras[image.camera]
        return External(
            image.feature, lambda: self.image(image, camera.read()), max_age=camera.max_age
        )
