"""From tracks to rows of a feature store, part by part."""
