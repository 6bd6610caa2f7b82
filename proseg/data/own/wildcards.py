"""Patterns of paths: what `images/*.jpg` and `manual/{stem}_{rater}.png` match."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

TOKEN = re.compile(r"\{([A-Za-z_]\w*)\}|\*\*/|\*|\?")


@dataclass(frozen=True)
class Pattern:
    """A pattern that an option gives; see `proseg.data.own.patterns`."""

    option: str
    given: str
    path: str
    """The same, relative to the folder."""

    def __str__(self) -> str:
        return f"{self.option} {self.given!r}"

    @cached_property
    def words(self) -> frozenset[str]:
        """Those in braces."""
        return frozenset(match[1] for match in TOKEN.finditer(self.path) if match[1])

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """What matches a path relative to the folder; its groups are the words."""
        return self.regex_of({})

    @cached_property
    def regex_in_any_case(self) -> re.Pattern[str]:
        return re.compile(self.regex.pattern, re.IGNORECASE)

    def regex_of(self, known: Mapping[str, Iterable[str]]) -> re.Pattern[str]:
        """The same, where for some words the texts are known, of which the longest that fits is taken."""
        text, place, seen = "", 0, set()
        for match in TOKEN.finditer(self.path):
            text += re.escape(self.path[place : match.start()])
            place, word = match.end(), match[1]
            if word is None:
                text += {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}[match[0]]
            elif word in seen:
                text += f"(?P={word})"
            else:
                seen.add(word)
                text += f"(?P<{word}>{_any_of(known[word]) if word in known else '[^/]+?'})"
        return re.compile(text + re.escape(self.path[place:]))


def _any_of(texts: Iterable[str]) -> str:
    """As alternatives, but what several texts begin with is compared once: there may be many thousands."""
    tree: dict[str, dict] = {}
    for text in texts:
        node = tree
        for letter in text:
            node = node.setdefault(letter, {})
        node[""] = {}  # a text ends here
    return _branches(tree)


def _branches(node: dict[str, dict]) -> str:
    text = ""
    while len(node) == 1 and "" not in node:
        ((letter, node),) = node.items()
        text += re.escape(letter)
    if longer := "|".join(re.escape(letter) + _branches(below) for letter, below in node.items() if letter):
        text += f"(?:{longer})" + "?" * ("" in node)
    return text
