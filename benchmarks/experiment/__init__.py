"""Error and width of an experiment's interval that is looked at after every user."""
