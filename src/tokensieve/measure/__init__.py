"""What a reduced model costs, how fast it is and how well it answers, against the dense model and its oracle."""
