"""Lints for what the function renders: schemas.py asks Kubernetes' own schemas, manifests.py what schemas miss."""
