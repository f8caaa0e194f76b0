"""What a training run will cost: memory, time of a step, and how busy the device is."""
