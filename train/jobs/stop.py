"""How a training's process is asked to stop: by SIGTERM, and it ends at a checkpoint."""

from dataclasses import dataclass

STOPPED = 75
"""Exit status of a training that has stopped at a checkpoint."""


@dataclass
class StopRequest:
    """Set by a signal. A training looks at it after each step; before and after training the process ends at once."""

    is_set: bool = False
    is_training: bool = False

    def request(self, *_: object) -> None:
        self.is_set = True
        if not self.is_training:
            raise SystemExit(STOPPED)
