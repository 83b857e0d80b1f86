import asyncio
import threading

from faulty_work import draw
from flaws import Submission

from stress.receiver.picture_checks import PictureChecks

PICTURE = draw(Submission(prompt="a lighthouse", width=256, height=192))


class CountingSource:
    """Counts how often it is asked, and by how many at once."""

    def __init__(self) -> None:
        self.asked = self.now = self.most = 0
        self._lock = threading.Lock()
        self.go_on = threading.Event()

    def picture(self, sha256: str) -> bytes | None:
        with self._lock:
            self.asked += 1
            self.now += 1
            self.most = max(self.most, self.now)
        self.go_on.wait(20)
        with self._lock:
            self.now -= 1
        return PICTURE


async def test_a_picture_is_judged_once_for_all_who_ask_and_one_at_a_time() -> None:
    source = CountingSource()
    checks = PictureChecks(source)
    asking = [asyncio.create_task(checks.check(sha256)) for sha256 in ("a", "b") * 10]
    asking += [asyncio.create_task(checks.thumbnail("a")) for _ in range(5)]
    checks.want("a")
    await asyncio.sleep(0.1)
    source.go_on.set()
    await asyncio.gather(*asking)
    assert (source.asked, source.most) == (2, 1)
    assert checks.last_number == 2
    assert all(check.valid for check in checks.after(0))
