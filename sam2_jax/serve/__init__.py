"""Sessions for many people at once, over HTTP: what `sam2-jax serve` runs (docs/serve.md)."""
