"""The heads by name."""

HEADS: dict[str, str] = {
    "oneref": "refcli.heads.oneref:OneRefHead",
    "shared_ris": "refcli.heads.shared_ris:SharedRISHead",
}
