"""What labels and a run will come to, before anything is spent: figures with their formulas."""
