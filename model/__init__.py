"""The learned side: tensors in, weights out."""
