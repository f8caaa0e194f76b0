"""CGFormer: query tokens that group the pixels of an image level by level."""
