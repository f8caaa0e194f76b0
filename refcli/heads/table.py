"""The heads by name."""

HEADS: dict[str, str] = {"oneref": "refcli.heads.oneref:OneRefHead"}
