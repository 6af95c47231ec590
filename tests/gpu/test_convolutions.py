"""Which of cuDNN's plans are taken is decided once for all processes."""

import threading

from steps.gpu.convolutions import Choices


def test_one_decides_and_the_others_take_it(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    first, second = Choices("a GPU"), Choices("a GPU")
    assert first.get("one") is None
    found = []
    waiting = threading.Thread(target=lambda: found.append(second.get("one")))
    waiting.start()
    waiting.join(0.2)
    assert found == []
    first.set("one", 3)
    first.save()
    waiting.join(10)
    assert found == [3]
    third = Choices("a GPU")
    assert third.get("two") is None  # the second does not decide anything
    third.set("two", 1)
    third.save()
    assert Choices("a GPU").get("one") == 3
    assert Choices("a GPU").get("two") == 1
    assert Choices("another").get("one") is None


def test_where_nothing_can_be_written_each_decides(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "missing"))
    first, second = Choices("a GPU"), Choices("a GPU")
    assert (first.get("one"), second.get("one")) == (None, None)
    first.set("one", 2)
    first.save()
    assert (first.get("one"), second.get("one")) == (2, None)
