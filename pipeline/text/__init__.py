"""Text beside audio: columns of a manifest made into one text, and tokenizers, given or trained on a corpus."""
