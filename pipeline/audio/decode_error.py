"""The one error of audio that cannot be used."""


class DecodeError(ValueError):
    """Audio that cannot be used. `reason` is one of the manifest's, `detail` names both values."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)  # what it is made with, so that it can pass between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
