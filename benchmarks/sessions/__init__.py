"""User knowledge where it can matter: recorded texts of a strong language model at session starts."""
