"""From the store to batches: datasets, transforms, augmentation, sampling and mixtures."""
