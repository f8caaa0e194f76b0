"""The expressions of a scene: balanced kinds, distinct sentences, certain targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from refcli.data.language.dice import Dice, generator
from refcli.data.language.terms import Term, certain_targets, members
from refcli.data.language.wording import sentence
from refcli.data.sources.synthetic.graph import Graph, graph_of
from refcli.data.sources.synthetic.proposals import PROPOSALS, propose_absent
from refcli.data.sources.synthetic.scene import draw_scene
from refcli.data.sources.synthetic.settings import SyntheticSettings
from refcli.data.sources.synthetic.wording import PHRASEBOOK

TRIES_PER_KIND = 14
"""Proposals of one kind before another kind is tried."""
SENTENCES_ONLY = "sentences"
"""The split name of scenes that are not rendered."""


class SceneExpression(NamedTuple):
    """One expression about a scene."""

    text: str
    kind: str
    targets: tuple[int, ...]
    """Numbers of the objects, ascending; none for "no_target"."""
    term: Term


def describe(graph: Graph, settings: SyntheticSettings, dice: Dice) -> tuple[SceneExpression, ...]:
    """Up to `expressions_per_scene` different expressions, of kinds drawn by `kind_weights`."""
    kinds = list(settings.kind_weights)
    weights = list(settings.kind_weights.values())
    found: dict[str, SceneExpression] = {}
    for _ in range(3 * settings.expressions_per_scene):
        if len(found) == settings.expressions_per_scene:
            break
        kind = dice.weighted(kinds, weights)
        new = _draw_absent(graph, settings, dice) if kind == "no_target" else _draw_present(graph, kind, dice)
        if new and new.text not in found and all(new.term != old.term for old in found.values()):
            found[new.text] = new
    return tuple(found.values())


def _draw_present(graph: Graph, kind: str, dice: Dice) -> SceneExpression | None:
    for _ in range(TRIES_PER_KIND):
        term = PROPOSALS[kind](graph, graph.everything, dice)
        if term is not None and (targets := certain_targets(term, graph)):
            return SceneExpression(sentence(term, dice, PHRASEBOOK), kind, tuple(members(targets)), term)
    return None


def _draw_absent(graph: Graph, settings: SyntheticSettings, dice: Dice) -> SceneExpression | None:
    present = {kind: weight for kind, weight in settings.kind_weights.items() if kind != "no_target"}
    if not any(present.values()):
        present = dict.fromkeys(PROPOSALS, 1.0)
    kind = dice.weighted(list(present), list(present.values()))
    term = propose_absent(graph, kind, dice)
    return SceneExpression(sentence(term, dice, PHRASEBOOK), "no_target", (), term) if term else None


def iterate_expressions(settings: SyntheticSettings, count: int) -> Iterator[str]:
    """`count` expressions without images, for training a tokenizer."""
    index, left = 0, count
    while left > 0:
        scene = draw_scene(settings, generator(settings.seed, SENTENCES_ONLY, index, 0, "layout"))
        dice = Dice(generator(settings.seed, SENTENCES_ONLY, index, 0, "language"))
        index += 1
        for expression in describe(graph_of(scene), settings, dice)[:left] if scene else ():
            yield expression.text
            left -= 1
