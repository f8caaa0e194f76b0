"""The records that pass between layers: Example, Batch, Prediction, Answer."""
