"""A data set of one's own by patterns of paths: `images/*.jpg` and `manual/{stem}_{rater}.png`, below one folder.

A word in braces stands for any text within one name, the same wherever it stands again; `*` for any, `**/` for any
folders. {rater} is in every pattern of masks. {stem} in a pattern of masks is the name of the image without its type;
any other word must stand in the pattern of images too. {patient}, {volume}, {slice} and {split} tell what the columns
of these names tell in a manifest.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from proseg.data.images import is_image, stem
from proseg.data.manifest import Skipped
from proseg.data.own.entries import Entry, Files, Inventory
from proseg.data.own.manifest import number_of, part_of
from proseg.errors import ConfigError, DataError, Faults, listed

TOKEN = re.compile(r"\{([A-Za-z_]\w*)\}|\*\*/|\*|\?")


@dataclass(frozen=True)
class _Image:
    path: str
    """Relative to the folder."""
    words: dict[str, str]


def inventory(folder: Path, of_images: str, of_masks: Sequence[str]) -> Inventory:
    """The files below a folder that patterns tell; images without a mask and masks without an image are skipped.

    Raises:
        ConfigError: a pattern cannot be.
        DataError: nothing was found.
    """
    words = _words(of_images) | {"stem"}
    for pattern in of_masks:
        _check(pattern, words)
    files = Files(folder, "--from")
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_visible(path, folder))
    called = _regex(of_images)
    images = [_image(name, match) for name in there if (match := called.fullmatch(name))]
    if not images:
        raise DataError(f"{folder}: no file is called like --images {of_images!r}; {_some(there)}")
    # Where masks lie beside their images, a pattern of images may name both.
    beside = {
        name
        for pattern in of_masks
        for name, (image, _) in _matched(pattern, images, there, set()).items()
        if image not in (None, name)
    }
    images = [image for image in images if image.path not in beside]
    drawn: dict[str, dict[str, str]] = {image.path: {} for image in images}
    skipped, faults = [], Faults()
    for pattern in of_masks:
        found = _matched(pattern, images, there, {image.path for image in images})
        for mask, (image, rater) in found.items():
            if image is None:
                skipped.append(Skipped(mask, f"a mask by --masks {pattern!r} of which there is no image"))
            elif (other := drawn[image].setdefault(rater, mask)) != mask:
                faults.add(f"{folder / mask}: a second mask of rater {rater!r} for {image}, after {other}")
    faults.check()
    used = [image for image in images if drawn[image.path]]
    if not used:
        raise DataError(f"{folder}: no file is called like --masks {' or '.join(map(repr, of_masks))}; {_some(there)}")
    skipped += [Skipped(image.path, "an image without a mask") for image in images if not drawn[image.path]]
    raters = sorted({rater for masks in drawn.values() for rater in masks})
    entries = []
    for image in used:
        with faults.caught():
            entries.append(_entry(folder, image, drawn[image.path], raters, files))
    faults.check()
    return Inventory(
        source=folder,
        root=folder,
        raters=tuple(raters),
        entries=tuple(entries),
        patients_known="patient" in words,
        skipped=tuple(skipped),
    )


def _entry(folder: Path, image: _Image, masks: dict[str, str], raters: Sequence[str], files: Files) -> Entry:
    words, where = image.words, str(folder / image.path)
    for name in (image.path, *masks.values()):
        files.check(folder / name, where)
    patient = words.get("patient", stem(image.path))
    number = number_of(where, words.get("slice", ""))
    return Entry(
        where,
        (folder / image.path,),
        tuple(folder / masks[rater] if rater in masks else None for rater in raters),
        patient,
        words.get("volume") or (patient if number is not None else image.path),
        number,
        part_of(where, words["split"]) if "split" in words else None,
    )


def _image(name: str, match: re.Match[str]) -> _Image:
    return _Image(name, {"stem": stem(name.rpartition("/")[2])} | match.groupdict())


def _matched(
    pattern: str, images: Sequence[_Image], there: Iterable[str], taken: set[str]
) -> dict[str, tuple[str | None, str]]:
    """For each file that a pattern of masks names: its image, None where there is none, and its rater."""
    shared = sorted(_words(pattern) - {"rater"})
    by_words = {tuple(image.words[word] for word in shared): image.path for image in images}
    if len(by_words) < len(images):
        raise ConfigError(f"--masks {pattern!r} cannot tell the images apart: repeat more of what --images names")
    known = {word: {image.words[word] for image in images} for word in shared}
    exact, loose = _regex(pattern, known), _regex(pattern)
    found: dict[str, tuple[str | None, str]] = {}
    for name in there:
        if name in taken:
            continue
        if match := exact.fullmatch(name):
            found[name] = by_words.get(tuple(match[word] for word in shared)), match["rater"]
        elif match := loose.fullmatch(name):
            found[name] = None, match["rater"]
    return found


def _regex(pattern: str, known: dict[str, set[str]] | None = None) -> re.Pattern[str]:
    """Args:
    known: for some words the texts that they stand for, of which the longest that fits is taken.
    """
    text, place, seen = "", 0, set()
    for match in TOKEN.finditer(pattern):
        text += re.escape(pattern[place : match.start()])
        place, word = match.end(), match[1]
        if word is None:
            text += {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}[match[0]]
        elif word in seen:
            text += f"(?P={word})"
        else:
            seen.add(word)
            some = sorted((known or {}).get(word, ()), key=len, reverse=True)
            text += f"(?P<{word}>{'|'.join(map(re.escape, some)) or '[^/]+?'})"
    return re.compile(text + re.escape(pattern[place:]))


def _words(pattern: str) -> set[str]:
    return {match[1] for match in TOKEN.finditer(pattern) if match[1]}


def _check(pattern: str, words: set[str]) -> None:
    if "rater" not in _words(pattern):
        raise ConfigError(f"--masks {pattern!r} must hold {{rater}}, where the name of the rater stands in the path")
    if unknown := _words(pattern) - words - {"rater"}:
        raise ConfigError(
            f"--masks {pattern!r} holds {{{min(unknown)}}}, which --images does not hold; write * for what does not "
            "matter"
        )


def _is_visible(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and is_image(path.name) and path.is_file()


def _some(there: Sequence[str]) -> str:
    if not there:
        return "there is no image file in it"
    return f"there are {listed(there)}"
