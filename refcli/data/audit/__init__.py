"""What training and evaluation splits have in common: images, texts, boxes and objects."""
