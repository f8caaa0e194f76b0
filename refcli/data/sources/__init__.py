"""One module or package per upstream annotation format."""
