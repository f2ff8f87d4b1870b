"""Stores that several backends may need, each run by the tier itself."""
