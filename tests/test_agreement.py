"""The moment at which all processes of a group stop, with threads in place of processes."""

import random
import threading
import time

import pytest

from rgbd_jax.parallel import preemption_sync
from rgbd_jax.parallel.preemption_sync import Agreement


class Store:
    """The key-value store of a group."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        assert key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.values.copy().items() if key.startswith(folder)]


@pytest.fixture(autouse=True)
def _one_agreement(monkeypatch):
    """Makes the agreements of all threads the same one, as in processes that each make their first."""
    monkeypatch.setattr(preemption_sync, "_numbers", iter([7] * 100))


def run(count, moments, asked, seed=0, interval=0.01):
    """Returns after how many moments each of `count` threads stopped; `asked` tells who is asked after which moment."""
    store, stopped, draw = Store(), {}, random.Random(seed)
    pauses = [[draw.random() * 0.004 for _ in range(moments)] for _ in range(count)]

    def process(index):
        mine = Agreement(store, index, count, interval)
        passed = 0
        while passed < moments and not mine.reached():
            if asked.get(index) == passed:
                mine.ask()
            time.sleep(pauses[index][passed])
            passed += 1
        mine.end()
        stopped[index] = passed

    threads = [threading.Thread(target=process, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive(), "a process waits for ever"
    return [stopped[index] for index in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_all_stop_at_one_moment_whoever_is_asked_and_whenever(seed):
    draw = random.Random(seed)
    count = draw.randint(2, 5)
    asked = {index: draw.randint(0, 30) for index in range(count) if draw.random() < 0.6}
    stopped = run(count, 400, asked or {0: 3}, seed)
    assert len(set(stopped)) == 1
    assert min((asked or {0: 3}).values()) < stopped[0] < 400


def test_nobody_stops_unasked():
    assert run(3, 50, {}) == [50, 50, 50]


@pytest.mark.parametrize("moment", [97, 98, 99])
def test_asked_at_the_very_end_nobody_waits_for_ever(moment):
    stopped = run(3, 100, {1: moment}, interval=0.002)
    assert len(set(stopped)) == 1


def test_a_store_that_is_gone_holds_nobody_up():
    class Gone(Store):
        def key_value_dir_get(self, folder):
            raise ConnectionError

    mine = Agreement(Gone(), 0, 2, 0.01)
    mine.ask()
    time.sleep(0.05)
    assert not mine.reached()
