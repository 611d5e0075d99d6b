"""Hidden states of whole tracks."""
