"""The arithmetic that methods share: pure functions on tensors, with no model and no method in sight."""
