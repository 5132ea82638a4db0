from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.engine.download import Download, Patience, disk_error
from headrace.kernel.errors import StartupError
from support.hub import Hub, serving

CONTENT = random.Random(1).randbytes(5 << 20)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub(CONTENT)) as hub:
        yield hub


class Stage:
    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub = hub
        self.target = folder / "models" / "m.gguf"
        self.part = self.target.with_name("m.gguf.part")
        self.pauses: list[float] = []
        self.progress: list[tuple[int, int | None]] = []

    def run(self, attempts: int = 3, token: str = "") -> None:
        patience = Patience(
            attempts=attempts, first_pause_s=0.2, most_pause_s=0.3, timeout_s=10, sleep=self.pauses.append
        )
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        Download(self.hub.address + "/o/r/m.gguf", self.target, headers=headers, patience=patience).run(
            self.tell
        )

    def tell(self, done: int, total: int | None) -> None:
        self.progress.append((done, total))

    def fails(self, words: str, attempts: int = 3) -> None:
        with pytest.raises(StartupError, match=words) as caught:
            self.run(attempts)
        assert "\n" not in caught.value.message
        assert not self.target.exists()

    @property
    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.target.parent.iterdir() if path != self.target)


@pytest.fixture
def stage(hub: Hub, tmp_path: Path) -> Stage:
    return Stage(hub, tmp_path)


def test_the_whole_file_with_its_progress(stage: Stage) -> None:
    stage.run()
    assert stage.target.read_bytes() == CONTENT
    assert stage.leftovers == []
    assert stage.progress[0] == (0, len(CONTENT))
    assert stage.progress[-1] == (len(CONTENT), len(CONTENT))
    assert stage.progress == sorted(stage.progress)


def test_it_goes_on_where_it_broke_off(stage: Stage) -> None:
    stage.hub.break_after = [1_000_000, 2_000_000]
    stage.run()
    assert stage.target.read_bytes() == CONTENT
    assert stage.hub.ranges_seen == [None, "bytes=1000000-", "bytes=3000000-"]
    assert stage.pauses == [0.2, 0.2]  # each attempt brought something


def test_a_later_run_goes_on_too(stage: Stage) -> None:
    stage.hub.break_after = [1_000_000, 0, 0]
    stage.fails(r"broke off at 976\.6 KiB of 5\.0 MiB.*goes on where it stopped")
    assert stage.pauses == [0.2, 0.3]
    assert stage.part.stat().st_size == 1_000_000
    stage.run()
    assert stage.target.read_bytes() == CONTENT
    assert stage.hub.ranges_seen[-1] == "bytes=1000000-"


def test_a_server_without_ranges_starts_over(stage: Stage) -> None:
    stage.hub.ranges = False
    stage.hub.break_after = [1_000_000]
    stage.run()
    assert stage.target.read_bytes() == CONTENT


def test_another_version_is_not_glued_to_the_old_part(stage: Stage) -> None:
    stage.hub.break_after = [1_000_000, 0]
    stage.fails("broke off", attempts=1)
    stage.hub.break_after = []
    stage.hub.content = CONTENT[::-1]
    stage.run()
    assert stage.target.read_bytes() == CONTENT[::-1]


def test_a_part_longer_than_the_file_is_dropped(stage: Stage) -> None:
    stage.target.parent.mkdir()
    stage.part.write_bytes(bytes(len(CONTENT) + 1))
    stage.run()
    assert stage.target.read_bytes() == CONTENT


def test_damaged_bytes_are_not_kept(stage: Stage) -> None:
    stage.hub.etag = "0" * 64
    stage.fails("came damaged")
    assert stage.leftovers == []


def test_the_hub_names_the_hash_on_the_way_and_the_token_stays_with_it(stage: Stage) -> None:
    with serving(Hub(CONTENT, etag="not-a-hash")) as cdn:
        stage.hub.cdn = cdn.address
        stage.hub.etag = "1" * 64
        stage.fails("came damaged")
        stage.hub.etag = None
        stage.run(token="SECRET")
    assert stage.target.read_bytes() == CONTENT
    assert stage.hub.seen[-1][1]["authorization"] == "Bearer SECRET"
    assert "authorization" not in cdn.seen[-1][1]


def test_trouble_that_passes(stage: Stage) -> None:
    stage.hub.statuses = [503, 429]
    stage.run()
    assert stage.target.read_bytes() == CONTENT
    assert stage.pauses == [0.2, 0.3]


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        ([404], "HTTP 404"),
        ([401], "HF_TOKEN"),
        ([403], "needs access"),
        ([503] * 3, "HTTP 503"),
        ([400], "HTTP 400"),
    ],
)
def test_trouble_that_stays(stage: Stage, statuses: list[int], words: str) -> None:
    stage.hub.statuses = statuses
    stage.fails(words)
    assert stage.hub.statuses == []


def test_no_network(stage: Stage) -> None:
    stage.hub.address = "http://127.0.0.1:9"
    stage.fails("Check the network")


def test_a_file_that_cannot_fit_is_not_begun(stage: Stage) -> None:
    stage.hub.claims = 1 << 60
    stage.fails(r"needs 1048576\.0 TiB more, and .* are free")
    assert not stage.part.exists()


def test_who_watches_may_stop_it_and_what_came_stays(stage: Stage) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done:
            raise Stop

    url = stage.hub.address + "/o/r/m.gguf"
    with pytest.raises(Stop):
        Download(url, stage.target, headers={}, patience=Patience()).run(stop)
    assert stage.part.stat().st_size > 0
    stage.run()
    assert stage.target.read_bytes() == CONTENT


def test_a_full_disk_in_one_sentence(tmp_path: Path) -> None:
    assert "The disk is full" in disk_error(OSError(errno.ENOSPC, "x"), tmp_path).message
    assert (
        "can't be written: Permission denied"
        in disk_error(PermissionError(13, "Permission denied"), tmp_path).message
    )


def test_a_disk_that_takes_no_more(stage: Stage) -> None:
    stage.target.parent.mkdir()
    stage.part.symlink_to("/dev/full")
    stage.fails("The disk is full")


def test_a_long_wait_for_the_next_attempt_can_be_ended() -> None:
    slept: list[float] = []

    def look() -> None:
        if sum(slept) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Patience(first_pause_s=1000, most_pause_s=1000, sleep=slept.append).pause(1, look)
    assert slept == [0.5] * 3
