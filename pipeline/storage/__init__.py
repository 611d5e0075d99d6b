"""Where files lie: local paths and URLs, whole files or none, documents, and what kind a folder is."""
