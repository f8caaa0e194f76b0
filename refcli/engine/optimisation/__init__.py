"""One optimiser step: parameter groups, learning rate, gradient clipping and the moving average of the weights."""
