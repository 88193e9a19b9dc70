"""Offline replay: the decisions and models of the live system on recorded events, without a broker."""
