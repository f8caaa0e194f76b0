"""OneTower: the BEiT-3 multiway transformer, and the visual tokenizer."""
