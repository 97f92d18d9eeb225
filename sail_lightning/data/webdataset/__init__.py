"""WebDataset shards: written by `data convert`, read by a source."""
