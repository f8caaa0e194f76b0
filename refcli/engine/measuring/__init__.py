"""The cost of a training run: memory, time of a step, and utilisation of the device."""
