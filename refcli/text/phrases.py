"""Position words in expressions, and expressions for mirrored images."""

from __future__ import annotations

import re

_MIRRORED = {
    "left": "right",
    "leftmost": "rightmost",
    "lefthand": "righthand",
    "leftside": "rightside",
    "leftward": "rightward",
    "leftwards": "rightwards",
    "leftest": "rightest",
    "lft": "rt",
}
_MIRRORED |= {right: left for left, right in _MIRRORED.items()}
_DIRECTION = re.compile(r"\b(" + "|".join(sorted(_MIRRORED, key=len, reverse=True)) + r")\b", re.IGNORECASE)

_STRESSED = (
    r"above|after|against|along|around|before|behind|below|beneath|beside|between|here|inside|next|now|there|through|"
    r"under|underneath|in\s+(?:front|between|the\s+(?:middle|cent(?:er|re)|corner))"
)
_STRESS = re.compile(rf"\bright(?=\s+(?:{_STRESSED})\b)", re.IGNORECASE)
_STRESS_AFTER_VERB = re.compile(r"(?<=ing\s)right(?=\s+(?:at|by|in|near|on|off|over|up|down)\b)", re.IGNORECASE)
_MARKS_A_DIRECTION = re.compile(
    r"\b(?:at|back|bottom|cent(?:er|re)|extreme|facing|far|farthest|from|front|furthest|her|his|its|lower|middle|most|"
    r"of|on|our|their|the|to|top|towards?|upper|very|your|my)[\s-]+$",
    re.IGNORECASE,
)
_LEFT_BEHIND = re.compile(r"\bleft(?=\s+(?:behind|over|out|alone)\b)", re.IGNORECASE)
_AGREEMENT = re.compile(r"(?<=\ball\s)right\b|(?<=\bthat's\s)right(?=\s*[.!,]*\s*$)", re.IGNORECASE)
_NO_DIRECTION = (_STRESS_AFTER_VERB, _LEFT_BEHIND, _AGREEMENT)

_PLACE = re.compile(
    r"\b(?:left|right|lft|rt|(?:left|right)(?:hand|side|est|wards?)|\w*most|mid|middle|cent(?:er|re)|central|corner|edge|"
    r"sides?|end|top|bottom|upper|lower|lowest|low|higher|highest|high|above|below|beneath|under|underneath|over|between|"
    r"beyond|opposite|behind|front|back|rear|foreground|background|near|nearest|nearer|closer|closest|far|farther|farthest|further|"
    r"furthest|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last|next|row|column|number|"
    r"(?:north|south|east|west)(?:ern)?|frame|screen|cropped|cut|partial|partially|visible|\d+(?:st|nd|rd|th)|o['’]?clock)\b",
    re.IGNORECASE,
)


def swap_left_right(expression: str) -> str:
    """The expression for the mirrored image: whole direction words are swapped, and keep their capitalisation.

    "right" stays where it only adds emphasis ("right behind the car") or agreement ("that's right").
    """
    stays = {match.start() for pattern in _NO_DIRECTION for match in pattern.finditer(expression)}
    stays |= {
        match.start()
        for match in _STRESS.finditer(expression)
        if not _MARKS_A_DIRECTION.search(expression[: match.start()])
    }

    def mirrored(match: re.Match[str]) -> str:
        return match[0] if match.start() in stays else _like(match[0], _MIRRORED[match[0].lower()])

    return _DIRECTION.sub(mirrored, expression)


def mentions_position(expression: str) -> bool:
    """Whether the expression locates its referent in the image or in an order, so that cropping may change its meaning.

    It compares whole words: true for "top cup" and "the one behind", false for "the laptop" and "a bright cup".
    """
    return _PLACE.search(expression) is not None


def _like(model: str, word: str) -> str:
    """`word` with the capitalisation of `model`."""
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
