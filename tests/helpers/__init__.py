"""What tests of several rooms share: small models, references in plain loops, calls, records."""
