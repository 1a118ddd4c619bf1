import asyncio


class Pauses:
    """Sleeps that end at once, and are remembered; at the last one the sleeper is left to wait."""

    def __init__(self, most: int) -> None:
        self.seconds: list[float] = []
        self.reached = asyncio.Event()
        self._most = most

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) >= self._most:
            self.reached.set()
            await asyncio.Event().wait()
