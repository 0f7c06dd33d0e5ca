"""Pictures of what methods do to an image's patches: state maps, drawing, a PNG sheet or an HTML page."""
