"""`penspin completion`: a script that lets a shell complete the command line.

    eval "$(penspin completion bash)"          # or zsh, in their start files
    penspin completion fish | source

It holds verbs and options as they are now, and `task=` with the tasks that are registered.
"""

import argparse
from collections.abc import Iterator

from penspin_style.system.arguments import Parser
from penspin_style.system.plugins import entry_points, named_modules

_BASH = """_penspin() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} words path="" word
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case $word in -*|*=*) ;; *) path="${{path:+$path }}$word" ;; esac
  done
  case $path in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=/}}
complete -o default -F _penspin penspin
"""


def run(args: argparse.Namespace, parser: Parser) -> int:
    """Print the script of a shell."""
    rows = list(_rows(parser, ""))
    if args.shell == "fish":
        print("\n".join(_fish(rows)))
        return 0
    if args.shell == "zsh":
        print("autoload -Uz bashcompinit && bashcompinit")
    # what stands after a verb and its arguments is completed as what follows the verb
    cases = [
        f'    {_pattern(path)}) words="{" ".join(words)}" ;;' for path, words in reversed(rows)
    ]
    print(_BASH.format(cases="\n".join(cases)), end="")
    return 0


def _rows(parser: Parser, path: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (verbs so far, what can follow them), of every parser."""
    verbs = parser.verbs()
    words = [*verbs, *parser.options()]
    if parser.has("overrides"):
        words += [*(f"task={name}" for name in _tasks()), "num_envs=", "seed=", "name="]
    yield path, words
    for verb, sub in verbs.items():
        yield from _rows(sub, f"{path} {verb}".strip())


def _pattern(path: str) -> str:
    return f'"{path}"|"{path} "*' if path else "*"


def _fish(rows: list[tuple[str, list[str]]]) -> Iterator[str]:
    yield "complete -c penspin -e"
    for path, words in rows:
        seen = " ".join(f"; and __fish_seen_subcommand_from {verb}" for verb in path.split())
        test = seen.removeprefix("; and ") or "__fish_use_subcommand"
        yield f"complete -c penspin -n '{test}' -a '{' '.join(words)}'"


def _tasks() -> list[str]:
    others = entry_points("penspin_style.tasks")
    return [*named_modules("tasks", "TASK"), *(entry.name for entry in others)]
