"""Each method's own settings on the embedded photographs; what all share is setup/photos.yaml."""
