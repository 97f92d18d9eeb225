"""Models on disk: model folders, adapters, model cards, the Hugging Face Hub, and embeddings matched by token name."""
