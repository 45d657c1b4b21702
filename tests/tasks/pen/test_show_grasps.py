"""The contact sheet of a cache of grasps."""

import numpy as np
import pytest
from PIL import Image

from penspin_style.render.gl_renderer import NoOpenGLError, choose_platform
from scripts import show_grasps
from tasks.pen import grasps


@pytest.fixture
def small(monkeypatch):
    """A sheet of one row of two tiles."""
    try:
        choose_platform()
    except NoOpenGLError as error:
        pytest.skip(str(error))
    for name, value in (("ROWS", 1), ("COLUMNS", 2), ("SIZE", 64)):
        monkeypatch.setattr(show_grasps, name, value)


def test_a_sheet_shows_grasps_of_a_folder_with_pens_of_its_scale(small, tmp_path, capsys):
    rows = grasps.load_one(grasps.SHIPPED / "s0.29")[[0, 522]]
    grasps.save(rows, tmp_path / "mine", {"scale": 0.29})
    out = tmp_path / "x.png"
    assert show_grasps.main([str(tmp_path / "mine"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert page.shape == (64, 128, 3)
    yellow = (page[..., 0] - page[..., 2] > 60) & (page[..., 1] > 80)  # the pen
    assert yellow[:, :64].sum() > 100 and yellow[:, 64:].sum() > 100
    assert (yellow[:, :64] != yellow[:, 64:]).sum() > 50  # across in one, along in the other


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("nowhere", "nowhere is neither a folder nor a scale"),
        ("0.5", "there is no cache of grasps"),
        (".", "manifest.json"),
    ],
)
def test_what_is_no_cache_is_refused_in_words(word, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        show_grasps.main([word])
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
