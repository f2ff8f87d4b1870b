"""What RunFunction costs, as ratios to the SDK's identity function measured in the same run."""
