"""The metrics of REC, RES, GREC, GRES and phrase grounding."""
