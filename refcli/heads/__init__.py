"""The heads: one package per paper, and the parts they share."""
