"""The probing suite: music rendered, labelled and split by a seed, from packages anyone can get."""
