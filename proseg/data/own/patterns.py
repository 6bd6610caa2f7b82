"""A data set of one's own by patterns of paths: `images/*.jpg` and `manual/{stem}_{rater}.png`, below one folder.

A word in braces stands for any text within one name, the same wherever it stands again; `*` for any, `**/` for any
folders. {rater} is in every pattern of masks. {stem} in a pattern of masks is the name of the image without its type;
any other word must stand in the pattern of images too. {patient}, {volume}, {slice} and {split} tell what the columns
of these names tell in a manifest. A folder of DICOM files is one image.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from proseg.data.images import stem
from proseg.data.manifest import Skipped
from proseg.data.own.entries import Entry, Files, Inventory
from proseg.data.own.listing import Listing, is_dicom_name, listing, one_by_one
from proseg.data.own.manifest import number_of, part_of
from proseg.data.own.wildcards import Pattern
from proseg.errors import ConfigError, DataError, Faults, listed

Masks = dict[str, tuple[str | None, str]]
"""For each file of a mask its image, None where there is none, and its rater."""


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
    files = Files(folder, "--from")
    pattern, patterns = _pattern(files, "--images", of_images), [_pattern(files, "--masks", one) for one in of_masks]
    for one in patterns:
        _check(one, pattern.words | {"stem"})
    there = listing(folder)
    called = {one: there.called(one) for one in (pattern, *patterns)}
    images, found = _told_apart(pattern, patterns, called)
    drawn: dict[str, dict[str, str]] = {image.path: {} for image in images}
    skipped, faults = [], Faults()
    for one in patterns:
        for mask, (image, rater) in found[one].items():
            if mask in drawn:
                continue
            if image is None:
                skipped.append(Skipped(mask, f"a mask by {one} of which there is no image"))
            elif (other := drawn[image].setdefault(rater, mask)) != mask:
                if is_dicom_name(mask):
                    raise one_by_one(one)
                faults.add(f"{folder / mask}: a second mask of rater {rater!r} for {image}, after {other}")
    faults.check()
    used = [image for image in images if drawn[image.path]]
    if not used:
        masks = listed([mask.what for mask in skipped]) or "only images"
        raise DataError(
            f"{folder}: no image has a mask: {masks} are called like {' or '.join(map(str, patterns))}, and the "
            f"images are {listed([*drawn])}"
        )
    skipped += [Skipped(image.path, "an image without a mask") for image in images if not drawn[image.path]]
    known = {*drawn, *(mask for masks in drawn.values() for mask in masks.values()), *(one.what for one in skipped)}
    skipped += [*_nearly_called(there, (pattern, *patterns), known), *there.skipped]
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
        patients_known="patient" in pattern.words,
        skipped=tuple(skipped),
    )


def _pattern(files: Files, option: str, given: str) -> Pattern:
    """A pattern that may be absolute, or written with "./"."""
    path = files.below(Path(files.folder, given))
    if path is None:
        raise ConfigError(f"{option} {given!r} leads out of {files.folder}; name a folder above it with --from")
    return Pattern(option, given, path.relative_to(files.folder).as_posix())


def _told_apart(
    of_images: Pattern, of_masks: Sequence[Pattern], called: Mapping[Pattern, Mapping[str, re.Match[str]]]
) -> tuple[list[_Image], dict[Pattern, Masks]]:
    """The images, and what each pattern of masks names; a pattern of images may name masks that lie beside them."""
    images = [_image(name, match) for name, match in called[of_images].items()]
    found = {one: _matched(one, of_images, images, called[one]) for one in of_masks}
    every = chain.from_iterable(masks.items() for masks in found.values())
    if beside := {mask for mask, (image, _) in every if image not in (None, mask)} & called[of_images].keys():
        images = [image for image in images if image.path not in beside]
        found = {one: _matched(one, of_images, images, called[one]) for one in of_masks}
    return images, found


def _entry(folder: Path, image: _Image, masks: dict[str, str], raters: Sequence[str], files: Files) -> Entry:
    words, path = image.words, folder / image.path
    drawn, where = {rater: folder / mask for rater, mask in masks.items()}, str(path)
    for one in (path, *drawn.values()):
        files.check(one, where)
    patient = words.get("patient", stem(image.path))
    number = number_of(where, words.get("slice", ""))
    return Entry(
        where,
        (path,),
        tuple(map(drawn.get, raters)),
        patient,
        words.get("volume") or (patient if number is not None else image.path),
        number,
        part_of(where, words["split"]) if "split" in words else None,
    )


def _image(name: str, match: re.Match[str]) -> _Image:
    return _Image(name, {"stem": stem(name.rpartition("/")[2])} | match.groupdict())


def _matched(
    pattern: Pattern, of_images: Pattern, images: Sequence[_Image], called: Mapping[str, re.Match[str]]
) -> Masks:
    """The files that a pattern of masks names."""
    shared = sorted(pattern.words - {"rater"})
    by_words = {tuple(image.words[word] for word in shared): image.path for image in images}
    if len(by_words) < len(images):
        if all(is_dicom_name(image.path) for image in images):
            raise one_by_one(of_images)
        raise ConfigError(f"{pattern} cannot tell the images apart: repeat more of what --images names")
    exact = pattern.regex_of({word: {image.words[word] for image in images} for word in shared})
    found: Masks = {}
    for name, loose in called.items():
        match = exact.fullmatch(name)
        image = by_words.get(tuple(match[word] for word in shared)) if match else None
        found[name] = image, (match or loose)["rater"]
    return found


def _nearly_called(there: Listing, patterns: Sequence[Pattern], known: Collection[str]) -> Iterator[Skipped]:
    near = {name: pattern for pattern in reversed(patterns) for name in there.nearly_called(pattern)}
    for name in sorted(near.keys() - known):
        yield Skipped(name, f"called like {near[name]} but for capitals and small letters")


def _check(pattern: Pattern, words: Collection[str]) -> None:
    if "rater" not in pattern.words:
        raise ConfigError(f"{pattern} must hold {{rater}}, where the name of the rater stands in the path")
    if unknown := pattern.words - {*words, "rater"}:
        raise ConfigError(
            f"{pattern} holds {{{min(unknown)}}}, which --images does not hold; write * for what does not matter"
        )
