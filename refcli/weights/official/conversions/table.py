"""The kinds of official checkpoints by name, with the function that converts each."""

CONVERSIONS: dict[str, str] = {
    "oneref": "refcli.weights.official.conversions.oneref:plan",
    "beit3": "refcli.weights.official.conversions.beit3:plan",
    "cgformer": "refcli.weights.official.conversions.cgformer:plan",
    "rela": "refcli.weights.official.conversions.rela:plan",
    "vqkd": "refcli.weights.official.conversions.vqkd:plan",
}
"""Each row is called as `plan(official, args=, heads=, image_size=)` and returns a `ConversionPlan`."""
AUTO = "auto"
"""In place of a kind: detect it from the names of the tensors."""
