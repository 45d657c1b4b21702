"""The documentation builds as a site, strictly; what it is generated from is all there."""

import configparser
import html
import html.parser
import os
import pathlib
import pkgutil
import re
import shutil
import subprocess
import sys

import pytest
import yaml

import penspin_style
import real
import tasks

ROOT = pathlib.Path(__file__).parent.parent


def build(config, out, code=0):
    """Build a site into a folder; return what mkdocs says."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(out)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NO_MKDOCS_2_WARNING": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stderr[-4000:]
    return done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    said = build(ROOT / "mkdocs.yml", out)
    assert "WARNING" not in said
    return out


class Page(html.parser.HTMLParser):
    """The elements of a page, and what it loads from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        source = given.get("src") or (given.get("href") if tag == "link" else None) or ""
        if source.startswith(("http:", "https:", "//")):
            self.loads.append(source)


def test_every_module_has_a_page(site):
    names = [p.__name__ for p in (penspin_style, tasks, real)]
    for package in (penspin_style, tasks, real):
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        names += [m.name for m in found if not m.name.endswith("__main__")]
    assert len(names) > 100
    folder = site / "reference" / "api"
    for name in names:
        path = folder.joinpath(*name.split("."))
        page = path / "index.html" if (path / "index.html").exists() else path.with_suffix(".html")
        assert page.exists(), name
        assert f'id="{name}"' in page.read_text()


def test_the_commands_page_has_every_command_and_every_option(site):
    text = (site / "reference" / "commands.html").read_text()
    told = subprocess.run(
        [sys.executable, "-m", "penspin_style", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    verbs = re.findall(r"^    (\w+)  ", told, re.MULTILINE)
    assert {"train", "eval", "export", "serve", "data"} <= set(verbs)
    for verb in verbs:
        assert f"penspin {verb}" in text
    for option in ("--print-config", "--blank IMAGE", "--to lerobot|robomimic", "--smooth"):
        assert option in text


def test_a_docstrings_arguments_are_a_list(site):
    text = (site / "reference/api/penspin_style/env/env.html").read_text()
    assert "<li><code>stagger</code>: begin with random episode ages" in re.sub(
        r"<li>\s*<p>", "<li>", text
    )


def test_no_page_loads_anything_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 120
    for page in pages:
        parsed = Page(page.read_text())
        assert parsed.loads == [], page
        # an element that HTML does not have is a <name> of ours that is not shown
        assert not parsed.tags & {"camera", "name", "x", "group", "term", "feature", "task"}, page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[there](nowhere.md) [there](#nowhere) [there][penspin_style.no_such_thing]",
            ("'nowhere.md'", "'#nowhere'", "'penspin_style.no_such_thing'"),
        ),
        ("::: penspin_style.no_such_module", ("penspin_style.no_such_module",)),
    ],
)
def test_what_leads_nowhere_ends_the_build(tmp_path, text, said):
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(ROOT / "docs" / "hooks.py", docs)
    (docs / "index.md").write_text(f"# Page\n\n{text}\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {docs}\nnav: [index.md]\nhooks: []\n"
        "extra_css: []\n"
    )
    told = build(config, tmp_path / "site", code=1)
    assert all(name in told for name in said), told


def test_the_examples_page_shows_the_scripts(site):
    text = "".join(html.unescape(re.sub("<[^>]+>", "", (site / "examples.html").read_text())))
    for script in (ROOT / "docs" / "examples").glob("*.py"):
        assert script.read_text().strip() in text, script.name


PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))


def test_the_pages_import_what_is_there():
    line = re.compile(r"^from ((?:penspin_style|tasks|real)[\w.]*) import (.+)$", re.MULTILINE)
    found = [names for page in PAGES for names in line.findall(page.read_text())]
    assert len(found) >= 5
    for module, names in found:
        folder = ROOT.joinpath(*module.split("."))
        for name in names.split(", "):
            if folder.is_dir():
                assert (folder / f"{name}.py").exists(), f"{module}.{name}"
            else:
                text = folder.with_suffix(".py").read_text()
                assert re.search(rf"\b{name}\b", text), f"{module}.{name}"


def test_the_pages_name_files_that_are_there():
    roots = "penspin_style|tasks|real|cfg|scripts|tests|docs"
    named = re.compile(rf"(?<![\w/.:<>-])(?:{roots})/[\w/]*\w\.(?:py|xml|yaml|sh|md)\b")
    found = {(page.name, path) for page in PAGES for path in named.findall(page.read_text())}
    assert len(found) > 60
    for page, path in sorted(found):
        if not re.search(r"[A-Z]{4,}", path):  # NAME stands for any
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_the_readme_links_to_what_is_there():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
        assert links
        for link in links:
            assert (ROOT / link).exists(), f"{page.name}: {link}"


def test_the_citation_says_what_the_package_says():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys()  # what the format demands
    assert all({"name", "family-names"} & author.keys() for author in cited["authors"])
    assert cited["title"] == setup["metadata"]["name"]
    assert cited["license"] == setup["metadata"]["license"]
    assert cited["version"] == penspin_style.__version__


def test_developers_install_what_the_site_needs():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    docs, dev = (setup["options.extras_require"][name].split("\n") for name in ("docs", "dev"))
    needed = {line for line in docs if line and not line.startswith("#")}
    assert needed and needed <= set(dev)
