"""False alarms and power of the judge, per user and pooled."""
