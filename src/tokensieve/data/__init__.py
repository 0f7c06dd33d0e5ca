"""Images to measure and to train on: folders, streams, transforms."""
