"""A tiny invented release of every data set that is read by its name, laid out as its authors publish it."""

from __future__ import annotations

from json_set_releases import JSON_SET_RELEASES
from parquet_releases import PARQUET_RELEASES
from refer_releases import REFER_RELEASES
from release import Release

RELEASES: dict[str, Release] = {**REFER_RELEASES, **JSON_SET_RELEASES, **PARQUET_RELEASES}
"""Name of the data set -> its release."""
COVERED_BY_CORPORA = frozenset(
    {"flickr30k", "grefcoco", "referit", "refcoco_google", "refcoco_plus_unc", "refcoco_unc", "refcocog_google",
     "refcocog_umd"}
)  # fmt: skip
"""Data sets whose layout is that of the corpus of their format."""
