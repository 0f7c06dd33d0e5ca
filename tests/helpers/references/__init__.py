"""Every method written again in plain loops, one image at a time, from the formulas of its paper."""
