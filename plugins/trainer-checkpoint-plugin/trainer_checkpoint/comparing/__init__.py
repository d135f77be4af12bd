"""`trainer compare`: where the paths of two runs part."""
