"""What counts as a failed attempt of an insertion."""

import torch

from tasks.aloha.attempts import Attempts


def told(attempts, *steps):
    """Tell an environment heights of both objects and the tip's distance, m; return failures."""
    for left, right, tip in steps:
        attempts.note(torch.tensor([[left, right]]), torch.tensor([tip]))
    return attempts.failed.item()


def test_an_object_that_was_up_and_falls_is_a_failed_attempt_once():
    attempts = Attempts(1, 2, torch.device("cpu"))
    assert told(attempts, (0.02, 0.02, 1.0), (0.08, 0.02, 1.0), (0.02, 0.02, 1.0)) == 0  # never up
    assert told(attempts, (0.11, 0.02, 1.0), (0.08, 0.02, 1.0)) == 0  # not down yet
    assert told(attempts, (0.06, 0.02, 1.0), (0.02, 0.02, 1.0)) == 1
    assert told(attempts, (0.12, 0.12, 1.0), (0.02, 0.02, 1.0)) == 3


def test_a_peg_that_leaves_the_socket_is_one_and_one_that_stays_or_only_comes_near_is_none():
    attempts = Attempts(1, 2, torch.device("cpu"))
    assert told(attempts, (0.2, 0.2, 0.06), (0.2, 0.2, 0.2)) == 0  # 12 mm before the mouth
    assert told(attempts, (0.2, 0.2, 0.05), (0.2, 0.2, 0.08), (0.2, 0.2, 0.01)) == 0
    assert told(attempts, (0.2, 0.2, 0.091)) == 1
    assert told(attempts, (0.2, 0.2, 0.2)) == 1


def test_a_new_episode_begins_without_any_where_the_mask_says():
    attempts = Attempts(2, 2, torch.device("cpu"))
    for height in (0.2, 0.0, 0.2):
        attempts.note(torch.full((2, 2), height), torch.ones(2))
    attempts.clear(torch.tensor([True, False]))
    assert attempts.failed.tolist() == [0, 2]
    attempts.note(torch.zeros(2, 2), torch.ones(2))
    assert attempts.failed.tolist() == [0, 4]
