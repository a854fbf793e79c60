"""`.reelfs/` and `.raw/`: status, control and the bucket as it is."""
