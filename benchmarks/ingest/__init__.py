"""Events per second of the profile stage, compared with other stream processors."""
