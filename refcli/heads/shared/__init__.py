"""Parts that the heads of several papers share."""
