"""Work spread over Ray actors, torchrun ranks or processes of this machine."""
