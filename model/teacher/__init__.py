"""An earlier encoder as teacher: codes of a hidden layer."""
