"""`penspin watch`: a run's page, from its folder alone."""

import json
import pathlib
import shutil
import subprocess
import threading
import urllib.error
import urllib.request

import pytest

from penspin_style.__main__ import main
from penspin_style.train.runs import read_run
from penspin_style.viewer.watch import PAGE, charts, describe, make_server
from tests.cli.test_runs import make


@pytest.fixture
def run(tmp_path):
    folder = make(tmp_path / "one", score=0.5)
    (folder / "videos").mkdir()
    (folder / "videos" / "episode.mp4").write_bytes(b"video")
    return folder


@pytest.fixture
def address(run):
    server, address = make_server(run, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read()


def test_the_page_follows_the_folder_while_it_grows(run, address):
    kind, body = get(f"{address}data")
    said = json.loads(body)
    assert kind == "application/json" and said["title"] == "reach/one"
    assert said["facts"]["samples"] == "200" and said["facts"]["success_at_end"] == "0.5"
    (curve,) = said["charts"]
    assert curve == {"name": "eval/success_at_end", "x": [0, 100, 200], "y": [0, 0.5, 1]}
    with (run / "metrics.csv").open("a") as file:
        file.write("3,300,30,15,15,0.25\n4,4")  # and half a row
    (curve,) = json.loads(get(f"{address}data")[1])["charts"]
    assert curve["y"] == [0, 0.5, 1, 0.25]


def test_three_addresses_are_served_and_nothing_else_of_the_disk(run, address):
    assert get(address) == ("text/html; charset=utf-8", PAGE.read_bytes())
    assert get(f"{address}video?x") == ("video/mp4", b"video")
    for path in ("config.yaml", "../two/config.yaml", "%2e%2e/config.yaml", "data/x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{address}{path}")
    shutil.rmtree(run / "videos")
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(f"{address}video")


def test_the_page_loads_nothing_from_elsewhere():
    text = PAGE.read_text().replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text


def test_long_curves_are_thinned_and_keep_their_last_point(tmp_path):
    run = read_run(make(tmp_path / "one", values=[0.1] * 999 + [0.9]))
    (curve,) = charts(run)
    assert len(curve["x"]) <= 401 and (curve["x"][-1], curve["y"][-1]) == (99900, 0.9)
    assert describe(run)["video"] == ""


def test_what_cannot_be_watched_is_one_line(run, address, capsys):
    assert main(["watch", str(run.parent / "nowhere")]) == 2
    assert "is no run folder" in capsys.readouterr().err
    port = address.rpartition(":")[2].strip("/")
    assert main(["watch", str(run), "--port", port]) == 2
    err = capsys.readouterr().err
    assert f"--port {port}" in err and "in use" in err and err.count("\n") == 1


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_browser_draws_the_page(address, tmp_path):
    """The curves are drawn by the page's own script."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert '<h1 id="title">reach/one</h1>' in done.stdout
    assert '<path d="M0.00 60.00L50.00 30.00L100.00 0.00">' in done.stdout
    assert pathlib.Path(tmp_path / "profile").exists()
