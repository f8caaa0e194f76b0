"""The kinds of official checkpoint by name, and what makes a plan of each."""

CONVERSIONS: dict[str, str] = {
    "oneref": "refcli.weights.conversions.oneref:plan",
    "beit3": "refcli.weights.conversions.beit3:plan",
    "cgformer": "refcli.weights.conversions.cgformer:plan",
    "rela": "refcli.weights.conversions.rela:plan",
    "vqkd": "refcli.weights.conversions.vqkd:plan",
}
"""Each row is called as `plan(official, args=, heads=, image_size=)` and gives a `Plan`."""
