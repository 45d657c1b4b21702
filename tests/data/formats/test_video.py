"""Videos of cameras: any size, any rate, every image found again."""

from fractions import Fraction

import numpy as np
import pytest

from penspin_style.data.formats.video import VideoError, VideoWriter, read_video
from tests.support.robots import camera_frames


@pytest.mark.parametrize("rate", [12.5, 20, 30000 / 1001, 1000 / 33])
@pytest.mark.parametrize("size", [(16, 16), (33, 20), (1, 64)])
def test_images_of_any_size_and_rate_are_found_again(tmp_path, rate, size):
    fps = Fraction(rate).limit_denominator(1001)
    images = camera_frames(9, *size, 1)
    writer = VideoWriter(tmp_path / "a.mp4", *size, fps)
    writer.add(images[:4], cut=True)
    before = writer.size
    writer.add(images[4:], cut=True)
    writer.close()
    assert 0 < before < writer.size < (tmp_path / "a.mp4").stat().st_size
    whole = read_video(tmp_path / "a.mp4", (*size, 3), 0, 9, fps)
    assert np.abs(whole.astype(int) - images).mean() < 8
    for first in range(9):
        part = read_video(tmp_path / "a.mp4", (*size, 3), first, 9 - first, fps)
        np.testing.assert_array_equal(part, whole[first:])
    with pytest.raises(VideoError, match=r"a\.mp4 has no image at"):
        read_video(tmp_path / "a.mp4", (*size, 3), 5, 5, fps)
