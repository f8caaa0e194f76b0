"""Upstream formats, one module or package each; `table.py` lists them, `record.py` is their contract."""
