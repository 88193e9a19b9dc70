"""The Faust app and the pure folds it calls: profile, drift, trust, refresh."""
