"""From annotation files and generators to packed batches."""
