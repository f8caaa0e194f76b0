"""The heads by name."""

HEADS: dict[str, str] = {
    "cgformer": "refcli.heads.cgformer.head:CGFormerHead",
    "oneref": "refcli.heads.oneref.head:OneRefHead",
    "rela": "refcli.heads.rela.head:RelaHead",
    "shared_ris": "refcli.heads.shared_ris.head:SharedRISHead",
}
