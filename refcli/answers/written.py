"""Shared code of the writers: answers grouped by image, categories from expressions, file names, and the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from refcli.contracts.prediction import Answer, Target


@dataclass(slots=True)
class AnsweredImage:
    """An image with all answers about it."""

    image: str
    width: int
    height: int
    answers: list[Answer] = field(default_factory=list)

    @property
    def found(self) -> Iterator[tuple[Answer, Target]]:
        """Every target, with the answer that it belongs to."""
        return ((answer, target) for answer in self.answers for target in answer.targets)


@dataclass(slots=True)
class Written:
    """The result of a writer.

    Args:
        files: names of the files, below the output folder.
        num_answers: answers that were written.
        num_targets: boxes that were written.
        failed: ids of answers with an error or without an image size, which the formats cannot represent.
    """

    files: list[str] = field(default_factory=list)
    num_answers: int = 0
    num_targets: int = 0
    failed: list[str] = field(default_factory=list)


def usable(answers: Iterable[Answer], written: Written, *, min_score: float = 0.0) -> Iterator[Answer]:
    """The answers that the formats can represent; counts them, and lists the others in `written`.

    Args:
        answers: in any order.
        written: is updated.
        min_score: targets with a lower score are left out. An answer that loses all its targets, here or when it was
            made (`no_target_source: min_score`), is left out with them: a low score does not mean that there is no
            target.
    """
    for answer in answers:
        if answer.error is not None or answer.width <= 0 or answer.height <= 0:
            written.failed.append(answer.id)
            continue
        kept = tuple(target for target in answer.targets if target.score >= min_score)
        if not kept and (answer.targets or answer.no_target_source == "min_score"):
            continue
        written.num_answers += 1
        written.num_targets += len(kept)
        yield answer if len(kept) == len(answer.targets) else replace(answer, targets=kept)


def by_image(answers: Iterable[Answer]) -> list[AnsweredImage]:
    """The images in the order in which they first appear."""
    images: dict[str, AnsweredImage] = {}
    for answer in answers:
        image = images.setdefault(answer.image, AnsweredImage(answer.image, answer.width, answer.height))
        image.answers.append(answer)
    return list(images.values())


def categories(images: Iterable[AnsweredImage]) -> dict[str, int]:
    """Every expression with its index, from 0, in the order in which they first appear."""
    return {name: index for index, name in enumerate(dict.fromkeys(a.expression for i in images for a in i.answers))}


def file_names(images: Iterable[AnsweredImage], suffix: str) -> list[str]:
    """A file name per image: its stem, numbered if several images share it (ignoring case)."""
    taken: set[str] = set()
    names = []
    for image in images:
        stem = PurePath(image.image.replace("\\", "/")).stem or "image"
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(name + suffix)
    return names
