"""COCO-style JSON: instances files, and grounding files with expressions."""
