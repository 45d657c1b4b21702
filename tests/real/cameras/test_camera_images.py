"""From a frame to what the policy was trained on; from a file of cameras to a robot's values."""

import pathlib
import time

import numpy as np
import pytest

from penspin_style.deploy.bundle import check_features
from penspin_style.features import Feature, PolicyCard
from real.cameras.camera import CameraError
from real.cameras.config import CameraConfig, read_cameras
from real.cameras.fit import Crop, crop_around, fit
from real.cameras.sensors import Cameras, images_of
from real.drivers import open_driver
from real.drivers.external import Readers
from tests.support.cameras import DEPTH, RGB, TCP, Still, card

ROOT = pathlib.Path(__file__).parents[3]

# The crop.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Crop(0, 80, 480, 480)),
        ({"center": (0.25, 0.5)}, Crop(80, 0, 320, 320)),
        # tan(20 degrees) / tan(30 degrees) = 0.6304 of 480 rows
        ({"view": 40.0, "frame_view": 60.0}, Crop(88, 168, 303, 303)),
        ({"view": 40.0, "frame_view": 60.0, "center": (0.5, 0.4)}, Crop(40, 168, 303, 303)),
        ({"view": 60.0, "frame_view": 60.0}, Crop(0, 80, 480, 480)),
        ({"view": 40.0}, Crop(0, 80, 480, 480)),
    ],
)
def test_a_crop_has_the_form_and_the_view_of_the_card(given, expected):
    assert crop_around((480, 640), (32, 32), **given) == expected


def test_a_crop_of_another_form_takes_the_whole_width():
    assert crop_around((480, 640), (20, 40)) == Crop(80, 0, 320, 640)


@pytest.mark.parametrize(
    ("frame", "given", "message"),
    [
        ((480, 640), {"view": 60.0, "frame_view": 40.0}, "the policy sees 60 degrees, 761 x 761"),
        ((480, 640), {"view": 40.0, "frame_view": 60.0, "center": (0.5, 0.1)}, "96 around"),
        ((24, 640), {}, "24 x 24 pixels are seen; the policy needs 32 x 32"),
    ],
)
def test_a_frame_that_holds_too_little_is_refused(frame, given, message):
    with pytest.raises(ValueError, match=message):
        crop_around(frame, (32, 32), **given)


def test_colours_are_averaged_over_areas_and_depth_is_never_mixed():
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 256, (12, 20, 3), np.uint8)
    crop = Crop(2, 4, 8, 12)
    wanted = rgb[2:10, 4:16].reshape(4, 2, 6, 2, 3).mean(axis=(1, 3))
    # rows and columns are averaged one after the other, each rounded by at most 0.5
    assert np.abs(fit(rgb, (4, 6), crop) - wanted).max() <= 1.0
    np.testing.assert_array_equal(fit(rgb, (8, 12), crop), rgb[2:10, 4:16])
    depth = rng.random((12, 20), np.float32)
    np.testing.assert_array_equal(fit(depth, (4, 6), crop), depth[3:11:2, 5:17:2])


# The file.


def write(tmp_path, text):
    path = tmp_path / "cameras.yaml"
    path.write_text(text)
    return path


def test_a_file_of_cameras_is_read(tmp_path):
    text = """
front: {kind: opencv, device: 2, size: [640, 480], rate: 30, view: 41.5}
wrist: {kind: realsense, device: "77", center: [0.5, 0.4], max_age: 0.1}
"""
    assert read_cameras(write(tmp_path, text)) == {
        "front": CameraConfig("opencv", 2, size=(640, 480), rate=30, view=41.5),
        "wrist": CameraConfig("realsense", "77", center=(0.5, 0.4), max_age=0.1),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("front: 3", "front: must be a mapping with a kind, it is 3"),
        ("front: {device: 0}", "front: kind is missing: one of opencv, realsense, file"),
        ("front: {kind: opencvv}", "front: kind 'opencvv' must be one of opencv"),
        ("front: {kind: opencv, devise: 1}", "no key 'devise'; did you mean 'device'"),
        ("front: {kind: file}", "kind file needs device"),
        ("front: {kind: opencv, size: [640]}", "size must be a list of two whole numbers"),
        ("front: {kind: opencv, size: 640}", "size must be a list of two whole numbers"),
        ("front: {kind: opencv, size: [0, 480]}", "size must be .* of 1 to 8192 pixels"),
        ("front: {kind: opencv, device: true}", "device must be a whole number or a text"),
        ("front: {kind: opencv, center: [0.5, 1.5]}", "center must be .* between 0 and 1"),
        ("front: {kind: opencv, rate: .nan}", "rate must be above 0 and up to 1000, got nan"),
        ("front: {kind: opencv, view: wide}", "view must be a number, got 'wide'"),
        ("{}", "names no camera"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_cameras(write(tmp_path, text))


# The card.


def test_the_images_of_a_shipped_card_are_found_with_their_view():
    folder = ROOT / "outputs" / "pretrained" / "aloha_peg_insertion_student" / "policy"
    found = images_of(PolicyCard.from_json((folder / "card.json").read_text()))
    assert [(i.feature.name, i.camera, i.size, i.is_depth, i.view) for i in found] == [
        (f"wrist_cam_{side}_{kind}", f"wrist_cam_{side}", (32, 32), kind == "depth", 58.0)
        for side in ("left", "right")
        for kind in ("rgb", "depth")
    ]


def both(**changes):
    """A camera with depth as the card's `front`, 24 x 32 pixels and 60 degrees high."""
    still = Still(depth=True, view=60.0)
    config = CameraConfig("realsense", **changes)
    asked = []

    def make(config, *, depth):
        asked.append(depth)
        return still

    return still, Cameras({"front": config}, card(RGB, DEPTH), make=make), asked


def test_a_camera_gives_the_images_of_a_card_to_a_robot():
    still, cameras, asked = both()
    assert asked == [True]
    features = {s.feature.name: s.feature for s in cameras.sensors} | {"tcp_pos": TCP}
    check_features(card(RGB, DEPTH), features)
    assert features["front_rgb"].history == 1 and features["front_rgb"].delay == 0
    readers = Readers(cameras.sensors)
    with cameras:
        readers.start()
        first = readers.read()
        time.sleep(0.05)
        second = readers.read()
        readers.close()
        assert cameras.notes == []  # the camera knows its view
    assert first["front_rgb"].shape == (8, 8, 3) and first["front_rgb"].dtype == np.uint8
    assert second["front_rgb"].mean() > first["front_rgb"].mean()  # frame k has the level k
    np.testing.assert_array_equal(first["front_depth"], np.full((8, 8), 0.5, np.float32))
    assert still.closed == 1


def test_a_robot_has_what_its_cameras_see():
    _, cameras, _ = both()
    for name in ("franka", "allegro_ros", "allegro_hand_ros", "aloha_ros"):
        driver = open_driver(name, "left", also=cameras.sensors)
        assert driver.features["front_depth"] == DEPTH


def test_what_is_not_as_in_training_is_said_and_too_narrow_a_lens_refused():
    still, cameras, _ = both()
    still.vertical_view = None
    with cameras:
        (note,) = cameras.notes
    assert "front: the policy was trained with 40 degrees" in note
    still, cameras, _ = both(view=30.0)  # stated, it overrides the camera's
    with pytest.raises(CameraError, match="camera 'front': the policy sees 40 degrees"):
        cameras.__enter__()
    assert still.closed == 1


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ({"frnt": CameraConfig("opencv")}, "sees no camera 'frnt'; did you mean 'front'"),
        ({"zebra": CameraConfig("opencv")}, "'zebra'; its cameras are front"),
    ],
)
def test_cameras_that_are_not_the_policys_are_refused(configs, message):
    with pytest.raises(ValueError, match=message):
        Cameras(configs, card(RGB, DEPTH))


def test_images_that_no_camera_gives_are_known():
    side = Feature("side_rgb", (8, 8, 3), "1", "uint8")
    front = {"front": CameraConfig("opencv")}
    assert Cameras(front, card(RGB)).missing == ()
    found = Cameras(front, card(RGB, DEPTH, side))
    assert found.missing == ("front_depth", "side_rgb")
    assert [sensor.feature.name for sensor in found.sensors] == ["front_rgb"]
