"""Work shared among the cores: the same results in the same order, one thread of the BLAS each, limits given back."""

import sys
import threading
import time
import warnings

import numpy as np
import pytest
import threadpoolctl

import gramnorm as gn
from gramnorm._arrays import limits, threads

pytestmark = pytest.mark.no_backend
RNG = np.random.default_rng


def blas_threads():
    found = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    return [library["num_threads"] for library in found]


@pytest.fixture(params=[1, 2, 5])
def count(request, monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: request.param)
    return request.param


def test_results_come_in_the_order_of_the_parts(count):
    assert threads.shared(lambda k: k * k, range(20)) == [k * k for k in range(20)]
    assert threads.shared(lambda k: k, []) == []


def test_bits_do_not_depend_on_the_number_of_threads(count):
    parts = list(np.random.default_rng(0).standard_normal((6, 30, 40, 40)))
    for found, part in zip(threads.shared(lambda a: a @ a, parts), parts, strict=True):
        with threads.one_thread_each:
            assert np.array_equal(found, part @ part)


def test_each_part_has_one_thread_of_the_blas_and_shares_no_further(count):
    before = blas_threads()

    def outer(_):
        inner = threads.shared(lambda _: threading.get_ident(), range(4))
        return blas_threads(), set(inner), threading.get_ident()

    for found, inside, here in threads.shared(outer, range(3)):
        assert set(found) == {1}
        assert count == 1 or inside == {here}
    assert blas_threads() == before


def test_limits_are_given_back_after_an_error_and_the_error_is_seen(count):
    before = blas_threads()

    def fails(k):
        if k == 2:
            raise KeyError(k)
        return k

    with pytest.raises(KeyError, match="2"):
        threads.shared(fails, range(4))
    assert blas_threads() == before


def test_contexts_that_overlap_in_two_threads_restore_what_the_first_one_found():
    before = blas_threads()
    entered, leave, after = threading.Event(), threading.Event(), []

    def other():
        with threads.one_thread_each:
            entered.set()
            leave.wait(10)
        after.extend(blas_threads())

    thread = threading.Thread(target=other)
    with threads.one_thread_each:
        thread.start()
        assert entered.wait(10)
        with threads.one_thread_each:
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {1}
    assert blas_threads() == before
    leave.set()
    thread.join()
    assert blas_threads() == after == before


class Library:
    """A BLAS with one number of threads for the process, as OpenBLAS once had."""

    def __init__(self, filepath, count):
        self.filepath, self.count = filepath, count

    def get_num_threads(self):
        return self.count

    def set_num_threads(self, count):
        self.count = count


def test_a_library_that_is_loaded_within_gets_its_own_number_back(monkeypatch):
    first, later = Library("first", 5), Library("later", 3)
    loaded = [first]
    monkeypatch.setattr(threads, "_blas", lambda *_: list(loaded))

    within = []

    def other():
        with threads.one_thread_each:
            within.extend([first.count, later.count])

    with threads.one_thread_each:
        loaded.insert(0, later)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert within == [1, 1]
    assert (first.count, later.count) == (5, 3)


def test_parts_compute_under_the_error_state_of_the_caller(count):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error")
        assert threads.shared(lambda x: np.float64(x) / 0.0, [1.0, 2.0]) == [np.inf, np.inf]


@pytest.mark.parametrize(
    ("word", "most"), [("1", 1), ("2, 4", 2), ("", 10**9), ("many", 10**9), ("0", 10**9)]
)
def test_the_word_of_the_user_is_a_limit(monkeypatch, word, most):
    monkeypatch.setenv("OMP_NUM_THREADS", word)
    assert 1 <= threads.cores() <= most


@pytest.mark.parametrize(("text", "most"), [("150000 100000", 2), ("max 100000", None), ("", None)])
def test_the_quota_of_a_container_is_a_limit(tmp_path, text, most):
    (tmp_path / "cpu.max").write_text(text)
    found = threads._quota.__wrapped__(tmp_path / "cpu.max")
    assert found == most if most else found > 10**6


STACKS = {
    "together": lambda: gn.matrix_norm_bracket(RNG(1).standard_normal((600, 40, 40))),
    "one by one": lambda: gn.matrix_norm_bracket(RNG(2).standard_normal((3, 240, 200))),
    "every size": lambda: gn.conv_norm_bracket(RNG(3).standard_normal((40, 36, 3, 3))),
    "wide": lambda: gn.conv_norm_bracket(RNG(6).standard_normal((64, 64, 3, 3))),
    "wide circle": lambda: gn.conv_norm_bracket(
        RNG(7).standard_normal((100, 100, 3, 3)), (9, 9), padding_mode="circular"
    ),
    "groups": lambda: gn.conv_norm_bracket(RNG(4).standard_normal((128, 16, 3, 3)), groups=8),
    "circle": lambda: gn.conv_norm_bracket(
        RNG(5).standard_normal((24, 24, 3, 3)), (32, 32), padding_mode="circular"
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_bounds_have_the_same_bits_whatever_the_number_of_threads(name, monkeypatch):
    called, pool = [], threads.shared
    monkeypatch.setattr(threads, "shared", lambda *a: called.append(len(a[1])) or pool(*a))
    monkeypatch.setattr(limits, "SHARED_OPERATIONS", 1e7)
    found = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "cores", lambda count=count: count)
        bracket = STACKS[name]()
        ends = (np.asarray(v).tobytes() for v in (bracket.lower, bracket.upper))
        found.append((*ends, bracket.n_products))
    assert found[0] == found[1] == found[2]
    assert max(called) > 1


def test_a_stack_meets_the_pool_once(monkeypatch):
    # a pool for every product, with all parts waiting for the last: slower with two threads than one
    called, pool = [], threads.shared
    monkeypatch.setattr(threads, "shared", lambda *a: called.append(len(a[1])) or pool(*a))
    monkeypatch.setattr(limits, "SHARED_OPERATIONS", 1e7)
    monkeypatch.setattr(threads, "cores", lambda: 2)
    stack = RNG(1).standard_normal((600, 40, 40))
    assert gn.matrix_norm_bracket(stack).n_products > 3
    assert called == [limits.SHARED_PARTS]
    called.clear()
    gn.matrix_norm_value_and_grad(stack)
    assert called == 2 * [limits.SHARED_PARTS]


def test_parts_are_those_of_the_work_and_cover_all():
    a = np.empty(0)
    for count, operations in ((1, 1e12), (7, 1e8), (1000, 1e6), (1000, 1e3), (5, 1e12)):
        cut = threads.parts(count, operations, like=a)
        assert [k for part in cut for k in range(count)[part]] == [*range(count)]
        work = count * operations / len(cut)
        assert len(cut) == 1 or (len(cut) <= limits.SHARED_PARTS and work >= 1e7)
    assert threads.parts(100, 1e12, like=object()) == [slice(0, 100)]


def test_no_condition_is_waited_for_while_parts_are_at_work(monkeypatch):
    # an interrupt between the lines of threading.Condition.wait comes out as a RuntimeError
    monkeypatch.setattr(threads, "cores", lambda: 2)
    awaited, called = threads._awaited, set()

    def profiled(future):
        before = sys.getprofile()
        sys.setprofile(lambda frame, *_: called.add(frame.f_code))
        try:
            return awaited(future)
        finally:
            sys.setprofile(before)

    monkeypatch.setattr(threads, "_awaited", profiled)
    assert threads.shared(lambda part: time.sleep(0.1) or part, range(4)) == [0, 1, 2, 3]
    assert awaited.__code__ in called
    assert threading.Condition.wait.__code__ not in called
