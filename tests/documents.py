"""The blocks and commands of README.md and docs/, each with the place where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        path: The document, from the root.
        line: Of its first line, from 1.
        language: As after the fence; empty where there is none.
    """

    path: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a block, or one in backticks; continued lines are joined, remarks are cut off."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def blocks(path: Path, *languages: str) -> list[Block]:
    """Those in any of `languages`, by default all."""
    content, found = path.read_text(), []
    for match in re.finditer(r"^( *)```([\w-]*)\n(.*?)^\1```", content, re.DOTALL | re.MULTILINE):
        if not languages or match[2] in languages:
            line = content.count("\n", 0, match.start(3)) + 1
            found.append(Block(str(path.relative_to(ROOT)), line, match[2], match[3]))
    return found


def all_blocks(*languages: str) -> list[Block]:
    return [block for path in DOCUMENTS for block in blocks(path, *languages)]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a shell block, without what is typed into them (here documents)."""
    start, text, ends = block.line, "", None
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        if ends is not None:
            ends = None if line.strip() == ends else ends
            continue
        text, start = (text + line.strip(), start) if text else (line.strip(), number)
        if text.endswith("\\"):
            text = text[:-1]
            continue
        if here := re.search(r"<<-?\s*['\"]?(\w+)", text):
            ends = here[1]
        plain = re.sub(r"(^|\s)#\s.*$", "", text).strip()
        if plain:
            yield Command(block.path, start, plain)
        text = ""


def shell() -> list[Command]:
    """Every command of every shell block."""
    return [command for block in all_blocks("sh", "bash", "console") for command in commands(block)]


PLACEHOLDER = re.compile(r"[…|\[\]<>]|\.\.\.|(?<![=\w-])[A-Z][A-Z_]{2,}\b|\b[A-Z]\b")


def inline() -> list[Command]:
    """Every `fewstep …` in backticks that is meant as it stands: nothing in it stands for something else."""
    found = []
    for path in [one for one in DOCUMENTS if one.parent.name != "reference"]:  # that is the code's own text
        fenced = False
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            fenced ^= line.lstrip().startswith("```")
            for text in [] if fenced else re.findall(r"`(fewstep [^`]+)`", line):
                if not PLACEHOLDER.search(text) and "-" in text:
                    found.append(Command(str(path.relative_to(ROOT)), number, text))
    return found
