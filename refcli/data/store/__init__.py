"""The store: one Parquet file per split, a manifest that lists them, and the images beside them."""
