"""Synthetic scenes: images of simple objects, with expressions whose targets are certain."""

from refcli.data.sources.synthetic.examples import RenderedScene, render_scene
from refcli.data.sources.synthetic.language import iterate_expressions
from refcli.data.sources.synthetic.settings import SyntheticSettings
from refcli.data.sources.synthetic.wording import vocabulary
from refcli.data.sources.synthetic.write import split_sizes, write_synthetic

__all__ = [
    "RenderedScene",
    "SyntheticSettings",
    "iterate_expressions",
    "render_scene",
    "split_sizes",
    "vocabulary",
    "write_synthetic",
]
