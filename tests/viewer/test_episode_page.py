"""Recorded episodes on a page: what is shown at which step."""

import contextlib
import json
import sys
import types

import numpy as np
import pytest

from penspin_style.__main__ import main
from penspin_style.data.episodes.episode import Header
from penspin_style.viewer.episode_page import EpisodePage
from tests.support.episodes import columns, image_card, record, vector_card


class _Handle:
    def __init__(self, **given):
        self.__dict__.update(given)
        self.removed = False

    def remove(self):
        self.removed = True


class _Page:
    """viser's server, as far as it is used here."""

    def __init__(self, host, port, verbose):
        self.gui, self.port, self.made = self, port, {}
        self.stop = lambda: None

    def get_port(self):
        return self.port

    def _add(self, name, **given):
        self.made[name] = _Handle(**given)
        return self.made[name]

    def add_dropdown(self, label, options, initial_value):
        return self._add(label, options=options, value=initial_value)

    def add_checkbox(self, label, initial_value):
        return self._add(label, value=initial_value)

    def add_slider(self, label, min, max, step, initial_value):
        return self._add(label, value=initial_value, max=max)

    def add_markdown(self, content):
        return self._add("facts", content=content)

    def add_image(self, image, label):
        return self._add(label, image=image)

    def add_uplot(self, data, series, title, **_):
        assert len(data) == len(series)
        return self._add(title, data=data, series=series)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Two episodes: with images and an instruction, and of numbers alone."""
    monkeypatch.setitem(sys.modules, "viser", types.SimpleNamespace(ViserServer=_Page))
    card = image_card()
    head = Header.of_card(card, source="twin", robot="toy", facts={"instruction": "Push *it*."})
    first = record(tmp_path / "a", card, columns(card, 9), header=head)
    return first, record(tmp_path / "b", vector_card(), success=False)


def test_a_step_shows_its_images_and_numbers(given):
    page = EpisodePage(given)
    made = page.server.made
    made["step"].value = 4
    page.draw()
    assert (made["front_rgb"].image == given[0]["observation/front_rgb"][4]).all()
    assert made["front_depth"].image.shape == (8, 8, 3)
    time, *curves, now = made["sent [rad]"].data
    assert np.allclose(time, given[0]["time"])
    assert np.allclose(np.stack(curves, axis=1), given[0]["sent"])
    assert now.argmax() == 4 and (now > now.min()).sum() == 1
    assert [s["label"] for s in made["sent [rad]"].series] == ["s", "ff", "mf", "th", "now"]
    text = made["facts"].content
    assert "step 4 of 9, 0.20 s; success" in text and "*Push  it .*" in text


def test_another_episode_replaces_what_belongs_to_the_first(given):
    page = EpisodePage(given)
    made, old = page.server.made, page.server.made["front_rgb"]
    made["episode"].value = given[1].path.name
    page.draw()
    assert old.removed and made["step"].max == given[1].steps - 1
    assert "failure" in made["facts"].content and "proprio [rad]" in made


def test_playing_goes_on_and_begins_anew(given):
    page = EpisodePage(given)
    page.server.made["step"].value = 7
    page.step()
    page.step()
    assert page.server.made["step"].value == 0


def test_the_command_serves_a_folder_and_says_what_is_no_episode(given, monkeypatch, capsys):
    monkeypatch.setattr(EpisodePage, "run", contextlib.nullcontext)
    folder = str(given[0].path.parent)
    assert main(["data", "view", folder, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["address"] == "http://127.0.0.1:8080/" and told["episodes"] == [str(given[0].path)]
    given[0].path.write_bytes(b"x")
    assert main(["data", "view", folder]) == 3
    assert given[0].path.name in capsys.readouterr().err


def test_the_genuine_viser_takes_what_the_page_gives_it(given, monkeypatch):
    monkeypatch.delitem(sys.modules, "viser")
    pytest.importorskip("viser")
    page = EpisodePage(given, port=8775)
    try:
        page.step()
        page.draw()
        page._which.value = given[1].path.name
        page.draw()
    finally:
        page.close()
