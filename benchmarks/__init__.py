"""Measurements, each against a peer in the same run; `make bench` runs them and writes the documents' tables."""
