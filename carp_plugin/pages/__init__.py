"""Pages: the frame that all have, the curves that several show, and the page of one pretraining."""
