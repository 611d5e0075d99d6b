"""What mert inspect shows of each kind of folder, as text and as a page."""
