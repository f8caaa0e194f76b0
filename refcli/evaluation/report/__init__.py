"""Reports of an evaluation: a JSON document and an HTML page."""
