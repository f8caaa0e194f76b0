"""The kinds of official checkpoint by name, and what makes a plan of each."""

CONVERSIONS: dict[str, str] = {
    "oneref": "refcli.weights.official.conversions.oneref:plan",
    "beit3": "refcli.weights.official.conversions.beit3:plan",
    "cgformer": "refcli.weights.official.conversions.cgformer:plan",
    "rela": "refcli.weights.official.conversions.rela:plan",
    "vqkd": "refcli.weights.official.conversions.vqkd:plan",
}
"""Each row is called as `plan(official, args=, heads=, image_size=)` and gives a `ConversionPlan`."""
