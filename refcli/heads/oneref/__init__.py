"""OneRef (NeurIPS 2024): a box (REC) and a mask (RES) straight from the features of the tower."""
