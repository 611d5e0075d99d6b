"""Names of notes, keys and chords, as the published sets and the suite write them."""

TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # of the letters, above C
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS)
TRIADS = tuple(f"{tonic}:{quality}" for quality in ("maj", "min") for tonic in TONICS)
NO_CHORD = "N"
