"""The heads by name."""

HEADS: dict[str, str] = {
    "cgformer": "refcli.heads.cgformer:CGFormerHead",
    "oneref": "refcli.heads.oneref:OneRefHead",
    "rela": "refcli.heads.rela:RelaHead",
    "shared_ris": "refcli.heads.shared_ris:SharedRISHead",
}
