"""What a run may be told: every key once, with its type, range, default and meaning."""
