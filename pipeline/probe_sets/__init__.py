"""Labelled audio for probing: the published sets, one file each, and tables of your own."""
