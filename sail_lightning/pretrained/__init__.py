"""Models on disk: model folders, adapters, cards, the hub, and embeddings matched by token name."""
