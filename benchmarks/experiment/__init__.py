"""Error rate and width of an experiment's confidence interval when it is checked after every user."""
