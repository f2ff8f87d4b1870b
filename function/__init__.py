"""function-kv-offload: a Crossplane composition function that composes a KV cache offload tier."""
