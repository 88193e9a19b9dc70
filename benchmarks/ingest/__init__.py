"""Events per second of the profile stage, beside other stream processors."""
