"""A corpus as rows: read without any decoder, made by decoding every file once."""
