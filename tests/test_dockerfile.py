"""The Dockerfile, as far as that can be told without building it."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
KNOWN = {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "ARG", "USER", "ENTRYPOINT", "CMD"}


def instructions():
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_every_instruction_is_known_and_the_image_is_named_with_its_version():
    found = instructions()
    assert {name for name, _ in found} == KNOWN
    assert found[0][0] == "FROM" and re.fullmatch(r"python:3\.1\d-slim-\w+", found[0][1])


def test_what_is_copied_is_there_and_not_ignored():
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [words.split()[:-1] for name, words in instructions() if name == "COPY"]
    for source in (s for sources in copied for s in sources):
        assert (ROOT / source).exists() and source in kept, source
    needed = {"setup.cfg", "README.md", "LICENSE", "cfg", "penspin_style", "tasks", "real"}
    assert needed <= {s for sources in copied for s in sources}


def test_packages_are_installed_without_leftovers_and_nothing_runs_as_root():
    runs = [words for name, words in instructions() if name == "RUN"]
    (apt,) = [words for words in runs if "apt-get install" in words]
    for part in ("apt-get update", "--yes", "--no-install-recommends", "rm -rf /var/lib/apt/lists"):
        assert part in apt
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT")
    extras = re.search(r"pip install \"\.\[([\w,]+)\]\"", " ".join(runs))[1].split(",")
    setup = (ROOT / "setup.cfg").read_text()
    assert all(f"\n{extra} =\n" in setup for extra in extras)
