"""Progress reports: lines of metrics, log.txt and TensorBoard."""
