"""Any folder in numbers, for people and for plots."""
