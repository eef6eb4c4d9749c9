"""What each main_*.py does: settings, then a run, then what is said about it."""
