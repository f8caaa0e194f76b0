"""An evaluation as a document and as an HTML page."""
