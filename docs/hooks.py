"""What MkDocs builds from the code: one page for all commands, one page for each module.

`commands` walks the argparse parser, `modules` the packages on disk: neither holds a list.
"""

import argparse
import pathlib
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import griffe
from mkdocs.structure.files import File

from penspin_style.cli.arguments import parser as make_parser

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("penspin_style", "tasks", "real")
API = "reference/api"


def on_config(config: Any) -> Any:
    """Put a page for each module below the entry `API` of the navigation."""
    for section in config.nav:
        for entry in section.get("Reference", []) if isinstance(section, dict) else []:
            if isinstance(entry, dict) and "API" in entry:
                entry["API"] = [entry["API"], *(_nav(name) for name in PACKAGES)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    pages = {"reference/commands.md": commands(make_parser())}
    pages |= {page(name): f"::: {name}\n" for name in modules()}
    pages[f"{API}/index.md"] = _index()
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


# Modules.


def modules() -> list[str]:
    """Return the dotted names of all modules of the packages, packages before their modules."""
    found = []
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            folders = [ROOT.joinpath(*parts[:i]) for i in range(1, len(parts))]
            if all((folder / "__init__.py").exists() for folder in folders):
                found.append(".".join(parts).removesuffix(".__init__"))
    return sorted(name for name in found if not name.endswith(".__main__"))


def page(name: str) -> str:
    """Return the page of a module; a package's is the index of its folder."""
    path = "/".join((API, *name.split(".")))
    return f"{path}/index.md" if (ROOT / name.replace(".", "/")).is_dir() else f"{path}.md"


def _nav(package: str) -> dict[str, Any]:
    """Return the navigation below a package: its own page, its modules, its packages."""
    entries: list[Any] = [page(package)]
    for name in modules():
        if name.rpartition(".")[0] == package:
            nested = page(name).endswith("/index.md")
            entries.append(_nav(name) if nested else {name.rpartition(".")[2]: page(name)})
    return {package.rpartition(".")[2]: entries}


def _index() -> str:
    """Return the page that lists every module with the first line of its docstring."""
    lines = ["# API", "", "Generated from the code: a page for each module.", ""]
    for package in PACKAGES:
        lines += [f"## {package}", "", "| module | holds |", "| --- | --- |"]
        for name in modules():
            if name.split(".")[0] == package:
                target = page(name).removeprefix(f"{API}/")
                lines.append(f"| [`{name}`]({target}) | {_summary(name)} |")
        lines.append("")
    return "\n".join(lines)


def _summary(name: str) -> str:
    file = ROOT / name.replace(".", "/")
    text = (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text()
    found = re.match(r'"""(.*?)(?:\n\n|""")', text, re.DOTALL)
    return in_cell(" ".join(found[1].split())) if found else ""


def in_cell(text: str) -> str:
    """Return a line of Markdown as a table's cell: what is not code shows `<` and `|`."""
    parts = re.split(r"(`[^`]*`)", text)
    shown = (p if p[:1] == "`" else p.replace("<", "&lt;").replace("|", "&#124;") for p in parts)
    return "".join(shown)


class ArgumentLists(griffe.Extension):
    """Show `name: what it is` lines of a docstring as a list; Markdown would join them."""

    _LINE = re.compile(r"^(?P<names>\w+(?:, \w+)*): (?P<rest>\S.*)$")

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Show `<name>` in any docstring as it stands; HTML would take it for an element."""
        if obj.docstring is not None:
            lines, code, blank = [], False, False
            for line in obj.docstring.value.splitlines():
                blank, before = not line.strip(), blank
                code = (line.startswith("    ") and (code or before)) or (code and blank)
                parts = [] if code else re.split(r"(`[^`]*`)", line)
                shown = (p if p[:1] == "`" else p.replace("<", "&lt;") for p in parts)
                lines.append(line if code else "".join(shown))
            obj.docstring.value = "\n".join(lines)

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite the docstring of a function, by the names of its parameters."""
        _listed(func.docstring, {parameter.name for parameter in func.parameters}, self._LINE)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Rewrite the docstring of a class, by the parameters of its constructor."""
        init = cls.members.get("__init__")
        known = {p.name for p in init.parameters} if isinstance(init, griffe.Function) else set()
        _listed(cls.docstring, known | set(cls.members), self._LINE)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Leave out what a constructor merely stores: no docstring, no type, nothing to read."""
        stored = {"instance-attribute"}
        for name, member in list(cls.members.items()):
            plain = isinstance(member, griffe.Attribute) and member.annotation is None
            if plain and member.docstring is None and member.labels == stored:
                del cls.members[name]


def _listed(docstring: Any, known: set[str], line: re.Pattern[str]) -> None:
    if docstring is None:
        return
    lines, inside = [], False
    for text in docstring.value.splitlines():
        found = line.match(text)
        if found and set(found["names"].split(", ")) <= known:
            if not inside:
                lines.append("")
            inside = True
            names = ", ".join(f"`{name}`" for name in found["names"].split(", "))
            lines.append(f"- {names}: {found['rest']}")
        else:
            inside = inside and text.startswith("    ")
            lines.append(text)
    docstring.value = "\n".join(lines)


# Commands.


def commands(parser: argparse.ArgumentParser) -> str:
    """Return a page with a section for each command and what it takes."""
    lines = ["# Commands", "", parser.description or "", "", (parser.epilog or "").strip(), ""]
    for level, sub in _walk(parser, 2):
        lines += [f"{'#' * level} {sub.prog}", "", sub.description or "", ""]
        usage = " ".join(sub.format_usage().removeprefix("usage: ").split())
        lines += ["```text", *textwrap.wrap(usage, 80, break_on_hyphens=False), "```", ""]
        rows = [_row(a) for a in sub._actions if not isinstance(a, _LEFT_OUT)]
        if rows:
            lines += ["| argument | default | |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


_LEFT_OUT = (argparse._HelpAction, argparse._SubParsersAction)


def _walk(
    parser: argparse.ArgumentParser, level: int
) -> Iterator[tuple[int, argparse.ArgumentParser]]:
    """Return (heading level, parser) of every command below a parser, depth first."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield level, sub
                yield from _walk(sub, level + 1)


def _row(action: argparse.Action) -> str:
    shown = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        name += f" {'|'.join(map(str, action.choices)) if action.choices else shown}"
    default = action.default
    told = "" if default in (None, False, True, argparse.SUPPRESS, []) else f"`{default}`"
    text = in_cell(" ".join((action.help or "").split()).replace("%%", "%"))
    return f"| `{name}` | {told} | {text} |"
