"""One file a verb: its options, its help and what is refused at once. Nothing heavy is imported before it is called."""
