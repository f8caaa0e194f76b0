"""Parquet files: the layouts of data sets on the Hugging Face Hub, and any other by the names of its columns."""
