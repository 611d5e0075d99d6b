"""The error that is raised for audio that cannot be used."""


class DecodeError(ValueError):
    """Audio that cannot be used. `reason` is one of the manifest's, `detail` names both values."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)  # the arguments, so that it can be pickled
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
