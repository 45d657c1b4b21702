"""The stock ALOHA client before our policies: what it sends, what it gets, what is refused."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from penspin_style.__main__ import main
from penspin_style.deploy.actions import Decoder
from penspin_style.deploy.bundle import Bundle, ObservationError
from penspin_style.features import Feature, Input
from real.serving.aloha import AlohaAdapter
from real.serving.client import PolicyClient, PolicyError
from real.serving.remote_policy import PolicyLostError, RemotePolicy
from real.serving.server import PolicyServer, ServeError
from real.serving.wire import pack
from real.twin.robot import SimRobot, load_twin
from tasks.robots.aloha.description import HOME, JOINTS, denormalize, has_switched, normalize
from tests.support.aloha_policy import IMAGES, NUMBERS, Told, card, exported, request
from tests.support.serving import ONNX, ask, client, serving


def asked(adapter, observation):
    """What the server does with a request."""
    adapter.expected.check(observation)
    return adapter.act(observation)


# Numbers.


def test_actions_add_up_to_absolute_targets_in_the_units_of_the_state():
    """By hand: a joint moves by 0.02 rad an action, a gripper by 0.004 of its 0.035 m."""
    action = np.zeros(14)
    action[[0, 6, 13]] = 1.0, -1.0, 0.5
    adapter = AlohaAdapter(Told(action))
    start = np.array([*HOME[:6], 0.8] * 2)
    for step in range(1, 4):
        reply = asked(adapter, request(start))
        assert reply.dtype == np.float32 and reply.shape == (14,)
        expected = start.copy()
        expected[0] += 0.02 * step
        expected[6] -= 0.004 / 0.035 * step
        expected[13] = min(1.0, 0.8 + 0.002 / 0.035 * step)
        np.testing.assert_allclose(reply, expected, atol=1e-6)


def test_targets_stay_within_the_limits_of_the_card():
    adapter = AlohaAdapter(Told(np.ones(14)))
    reply = np.array([*HOME[:6], 1.0] * 2)
    for _ in range(200):
        reply = asked(adapter, request(reply))
    np.testing.assert_allclose(
        reply, normalize(np.array([c.high for c in card().actions])), atol=1e-6
    )


def test_the_policy_reads_the_proprioception_that_the_driver_gives():
    action = np.zeros(14)
    action[[2, 6]] = -1.0
    policy = Told(action)
    adapter = AlohaAdapter(policy)
    measured = np.array([*HOME[:6], 0.5] * 2)
    for _ in range(2):
        asked(adapter, request(measured))
    first, second = (seen["student"] for seen in policy.seen)
    qpos = denormalize(measured)
    np.testing.assert_allclose(first[:8], [*qpos[:7], qpos[6]], atol=1e-6)
    np.testing.assert_allclose(first[16:30], 0.0, atol=1e-6)  # the targets begin at the joints
    error = np.zeros(14)
    error[[2, 6]] = -0.02, -0.004
    np.testing.assert_allclose(second[16:30], error, atol=1e-6)


def test_the_switch_is_kept_until_the_episode_ends():
    policy = Told()
    adapter = AlohaAdapter(policy)
    low, high = (np.array([0.0, q, *HOME[2:6], 1.0] * 2) for q in (-0.6, -0.7))
    one = np.concatenate((high[:7], low[7:]))
    assert [has_switched(denormalize(s)) for s in (low, one, high)] == [False, False, True]
    for state in (low, one, high, low):
        asked(adapter, request(state))
    adapter.reset()
    asked(adapter, request(low))
    assert [seen["student"][-1] for seen in policy.seen] == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert policy.resets == 2


def test_a_history_is_stacked_here_for_the_client_sends_the_present_alone():
    inputs = (Input("student", (dataclasses.replace(NUMBERS.features[0], history=2, delay=1),)),)
    policy = Told(inputs=inputs)
    adapter = AlohaAdapter(policy)
    waists = (0.0, 0.1, 0.2, 0.15)
    for waist in waists:
        asked(adapter, request(np.array([waist, *HOME[1:6], 1.0] * 2)))
    seen = [row["student"].reshape(2, 8)[:, 0].tolist() for row in policy.seen]
    np.testing.assert_allclose(seen, [[0, 0], [0, 0], [0, 0.1], [0.1, 0.2]], atol=1e-6)


def test_a_chunk_is_added_up_and_the_next_one_begins_where_it_ends():
    policy = Told(np.stack([np.full(14, 0.5), np.ones(14), np.zeros(14)]))
    policy.horizon = 3
    adapter = AlohaAdapter(policy)
    state = np.array([*HOME[:6], 0.2] * 2)
    waist = [asked(adapter, request(state))[:, 0].tolist() for _ in range(2)]
    np.testing.assert_allclose(waist, [[0.01, 0.03, 0.03], [0.04, 0.06, 0.06]], atol=1e-6)


def test_arms_that_somebody_else_moved_are_refused_until_a_new_episode():
    adapter = AlohaAdapter(Told())
    state = np.array([*HOME[:6], 1.0] * 2)
    asked(adapter, request(state))
    gripped = state.copy()
    gripped[[6, 13]] = 0.0  # what is between the fingers keeps them from their target
    asked(adapter, request(gripped))
    moved = state.copy()
    moved[9] -= 0.4
    with pytest.raises(ObservationError, match=r"right_elbow is 0\.40 rad from .* connect again"):
        asked(adapter, request(moved))
    adapter.reset()
    np.testing.assert_allclose(asked(adapter, request(moved))[9], moved[9], atol=1e-6)


# Images.


def scene(height=480, width=640):
    """Smooth colours that differ everywhere, (height, width, 3)."""
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    red, green = 255 * y, 255 * x
    return np.stack((red, green, 127 + 127 * np.sin(4 * x + 3 * y)), axis=-1).astype(np.uint8)


def padded(image, size=224):
    """As `openpi_client.image_tools.resize_with_pad` does: the whole image, and black bars."""
    height = round(size * image.shape[0] / image.shape[1])
    out = np.zeros((size, size, 3), np.uint8)
    top = (size - height) // 2
    out[top : top + height] = Image.fromarray(image).resize(
        (size, height), Image.Resampling.BILINEAR
    )
    return out


def seen_of(image):
    policy = Told()
    images = {
        "cam_left_wrist": np.moveaxis(image, -1, 0),
        "cam_right_wrist": request()["images"]["cam_high"],
    }
    asked(AlohaAdapter(policy), request() | {"images": images})
    return policy.seen[0]["wrist_cam_left_rgb"]


def test_an_image_is_cropped_around_its_middle_and_averaged_without_the_clients_bars():
    """What the card asks for: 32:32 of the whole height, averaged: 15 x 15 pixels for one."""
    whole = scene()
    wanted = whole[:, 80:560].reshape(32, 15, 32, 15, 3).mean(axis=(1, 3))
    direct, bars = seen_of(whole), seen_of(padded(whole))
    assert direct.shape == bars.shape == (32, 32, 3) and direct.dtype == bars.dtype == np.uint8
    assert np.abs(direct - wanted).max() <= 1.0
    assert np.abs(bars - wanted).max() <= 4.0  # it was sampled twice
    assert np.abs(bars[[0, -1]] - wanted[[0, -1]]).max() <= 4.0  # no black of the bars


def test_an_image_of_the_policys_own_size_is_taken_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(seen_of(image), image)


# Depth, which the example would have to keep.


DEPTH = Input("wrist_cam_left_depth", (Feature("wrist_cam_left_depth", (32, 32), "m"),))


def asked_with(depth):
    """What a policy that reads depth sees of it."""
    policy = Told(inputs=(NUMBERS, *IMAGES, DEPTH))
    images = request()["images"] | {"cam_left_wrist_depth": depth}
    asked(AlohaAdapter(policy), request() | {"images": images})
    return policy.seen[0]["wrist_cam_left_depth"]


def test_of_depth_the_middle_is_seen_and_of_it_the_nearest_pixels():
    """By hand: 480 of 640 columns from the 80th on; 15 x 15 pixels for one, the eighth of each."""
    y, x = np.mgrid[:480, :640].astype(np.float32)
    metres = 1e-3 * y + x
    at = 15 * np.arange(32) + 7
    np.testing.assert_array_equal(asked_with(metres), metres[at[:, None], 80 + at])
    own = np.random.default_rng(0).random((32, 32), np.float32)
    np.testing.assert_array_equal(asked_with(own), own)


@pytest.mark.parametrize(
    ("depth", "complaint"),
    [
        (None, r"lacks 'cam_left_wrist_depth', .* \(height, width\) float32 in m.*deletes depth"),
        (np.zeros((32, 32)), r"must be \(height, width\) float32 in m, got .* of float64"),
        (np.zeros((1, 32, 32), np.float32), r"got \(1, 32, 32\)"),
        (np.zeros(32, np.float32), r"got \(32,\)"),
        (np.zeros((481, 640), np.float32), "640 x 481; at most"),
        (np.full((32, 32), -1e-3, np.float32), "below 0 m"),
        (np.full((32, 32), np.nan, np.float32), "below 0 m, or NaN"),
        (np.full((32, 32), np.inf, np.float32), "infinitely far"),
    ],
)
def test_depth_that_is_none_is_refused_before_the_policy_sees_it(depth, complaint):
    with pytest.raises(ObservationError, match=complaint):
        asked_with(depth)


# What is refused.


@pytest.mark.parametrize(
    ("feature", "complaint"),
    [
        (Feature("box_pos", (3,), "m"), "box_pos: not offered"),
        (Feature("front_depth", (32, 32), "m"), "front_depth: not offered"),
        (Feature("wrist_cam_left_depth", (32, 32), "mm"), "wrist_cam_left_depth: .*unit"),
        (Feature("left_qvel", (8,), "1"), "left_qvel: not offered"),
        (Feature("left_qpos", (7,), "1"), r"left_qpos: .* shape \(7,\), the robot has \(8,\)"),
    ],
)
def test_a_policy_that_reads_what_no_stock_client_sends_is_refused(feature, complaint):
    with pytest.raises(ServeError, match=complaint):
        AlohaAdapter(Told(inputs=(Input("student", (feature,)),)))


def test_a_policy_of_another_robot_is_refused_by_the_verb_with_exit_code_2(capfd):
    assert main(["serve", str(ONNX), "--port", "0", "--adapter", "aloha"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "--adapter aloha: the policy of panda_lift_cube commands ['tcp_x, m'" in said


def test_a_policy_whose_grippers_are_in_another_unit_is_refused():
    channels = [dataclasses.replace(c, unit="1") for c in card().actions]
    with pytest.raises(ServeError, match=r"left_gripper, 1.*grippers in m"):
        AlohaAdapter(Told(channels=tuple(channels)))


GREY = request()["images"]
REQUESTS = {
    "no state": ({"state": None}, r"`state` must be \(14,\) numbers"),
    "a batch": ({"state": np.zeros((1, 14))}, r"got \(1, 14\) of float64"),
    "ragged": ({"state": [[1.0], [1.0, 2.0]]}, "`state` is not an array"),
    "a map": ({"state": {"left": 1}}, r"`state` must be \(14,\) numbers"),
    "complex lists": ({"images": {**GREY, "cam_left_wrist": [[0], 1]}}, "is not an array"),
    "texts": ({"state": ["0"] * 14}, r"`state` must be \(14,\) numbers"),
    "not a number": ({"state": np.full(14, np.nan)}, "`state` of left_waist is nan"),
    "absurd": ({"state": np.r_[np.zeros(9), 1e300, np.zeros(4)]}, "of right_elbow is 1e"),
    "no images": ({"images": {}}, "`images` lacks 'cam_left_wrist', which the policy sees"),
    "images in a list": ({"images": [1]}, "`images` by camera"),
    "many images": (
        {"images": {**GREY, **{str(i): 0 for i in range(6)}}},
        "9 images; send at most 8",
    ),
    "many names": ({str(i): 0 for i in range(6)}, "a few names more"),
    "height first": (
        {"images": {**GREY, "cam_left_wrist": np.zeros((32, 32, 3), np.uint8)}},
        r"must be \(3, h",
    ),
    "floats": ({"images": {**GREY, "cam_left_wrist": np.zeros((3, 32, 32))}}, "of float64"),
    "too large": (
        {"images": {**GREY, "cam_right_wrist": np.zeros((3, 481, 640), np.uint8)}},
        "640 x 481; at most",
    ),
    "too small": (
        {"images": {**GREY, "cam_right_wrist": np.zeros((3, 30, 40), np.uint8)}},
        "30 x 30 are seen; the policy needs 32 x 32",
    ),
    "empty": (
        {"images": {**GREY, "cam_right_wrist": np.zeros((3, 0, 40), np.uint8)}},
        "0 x 0 are seen",
    ),
}


@pytest.mark.parametrize(("change", "complaint"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_that_is_none_is_refused_before_the_policy_sees_it(change, complaint):
    policy = Told()
    with pytest.raises(ObservationError, match=complaint):
        asked(AlohaAdapter(policy), {**request(), **change})
    assert policy.seen == []


# Over the wire.


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("aloha") / "policy.onnx")


def test_an_exported_policy_answers_the_stock_observation_with_targets(onnx_file):
    """The verb and a bare socket: the reply is the bundle's own action, decoded."""
    bundle, states = Bundle.load(onnx_file), np.array([*HOME[:6], 0.6] * 2)
    alone = AlohaAdapter(Told())
    with serving("--adapter", "aloha", policy=onnx_file) as process, client(process.url) as ws:
        hello = ws.hello
        assert hello["adapter"] == "aloha" and "card" not in hello
        assert hello["action"]["name"] == list(JOINTS) and hello["action"]["unit"][6] == "1"
        assert hello["action"]["low"][6] == 0.0 and hello["action"]["high"][13] == 1.0
        np.testing.assert_allclose(hello["reset_pose"], [*HOME[:6], 1.0] * 2)
        target = denormalize(states)
        for size in ((224, 224), (480, 640), (32, 32)):
            said = request(states, size)
            asked(alone, said)
            inputs = alone.policy.seen[-1]
            # the toy stood still, the policy's own targets went on
            error = target - denormalize(states)
            left, right = np.split(error, 2)
            inputs["student"][16:30] = error
            inputs["student"][30:46] = [*-left, -left[-1], *-right, -right[-1]]
            target = Decoder(bundle.card).decode(bundle(inputs), target)
            reply = ask(ws, said)["actions"]
            assert reply.shape == (1, 14) and np.abs(reply[0] - states).max() > 1e-3
            np.testing.assert_allclose(reply[0], normalize(target), atol=2e-5)


def test_each_client_has_its_own_targets_and_a_reset_begins_anew():
    action = np.full(14, 1.0)
    made = card()

    class Shared(Told):
        def fork(self):
            return Told(action, made=made)

    with PolicyServer(AlohaAdapter(Shared(made=made)), port=0) as server:
        state = np.array([*HOME[:6], 0.0] * 2)
        with client(server.url) as one, client(server.url) as two:
            steps = [(one, {}), (one, {}), (two, {}), (one, {"__reset__": True})]
            waists = [ask(ws, request(state, **more))["actions"][0, 0] for ws, more in steps]
    np.testing.assert_allclose(waists, [0.02, 0.04, 0.02, 0.02], atol=1e-6)


def test_our_client_gets_the_targets_and_no_robot_of_ours_takes_them_for_actions():
    state = np.array([*HOME[:6], 0.5] * 2)
    adapter = AlohaAdapter(Told(np.ones(14)))
    with PolicyServer(adapter, port=0) as server, PolicyClient(server.url) as ours:
        reply = ours.infer(request(state))["actions"]
        assert reply.shape == (1, 14) and reply[0, 2] == pytest.approx(HOME[2] + 0.02)
        with pytest.raises(PolicyLostError, match="sends no policy card"):
            RemotePolicy(ours)
        with pytest.raises(PolicyError, match="`images` lacks 'cam_right_wrist'"):
            ours.infer(request(state) | {"images": {"cam_left_wrist": GREY["cam_high"]}})


def test_the_largest_images_of_four_cameras_and_depth_fit_in_a_request():
    adapter = AlohaAdapter(Told(inputs=(NUMBERS, *IMAGES, DEPTH)))
    image = np.zeros((3, 480, 640), np.uint8)
    images = dict.fromkeys(("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"), image)
    images["cam_left_wrist_depth"] = np.zeros((480, 640), np.float32)
    frame = pack(request() | {"images": images})
    assert len(frame) < adapter.expected.max_frame
    with PolicyServer(adapter, port=0) as server, client(server.url) as ws:
        assert ask(ws, request() | {"images": images})["actions"].shape == (1, 14)


def test_the_twin_follows_a_stock_loop_as_it_follows_our_own():
    """State out, targets in: what the adapter adds up is what the twin's decoder would have."""
    twin = SimRobot(load_twin("aloha", features=("qpos",)))
    twin.connect()
    twin.reset()
    rng = np.random.default_rng(0)
    actions = [rng.uniform(-1, 1, 14) for _ in range(30)]
    adapter = AlohaAdapter(Told(*actions, made=card(channels=twin.channels)))
    ours = np.clip(twin.observe().measured, *np.array([(c.low, c.high) for c in twin.channels]).T)
    decoder = Decoder(twin.channels)
    for action in actions:
        reply = asked(adapter, request(normalize(twin.observe().measured)))
        ours = decoder.decode(action, ours)
        np.testing.assert_allclose(denormalize(reply), ours, atol=1e-6)
        twin.command(denormalize(reply))
    np.testing.assert_allclose(twin.target[:6], ours[:6], atol=1e-5)
