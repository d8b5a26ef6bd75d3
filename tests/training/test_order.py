"""Which pairs a step sees, and at what learning rate."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpobench.training.order import batch_at, order
from dpobench.training.run import Recipe


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    first = order(3, 2, 50).tolist()
    order.cache_clear()
    np.random.seed(99)
    order(4, 2, 50)
    assert order(3, 2, 50).tolist() == first
    assert order(3, 3, 50).tolist() != first
    assert order(4, 2, 50).tolist() != first


@given(pairs=st.integers(1, 60), batch=st.integers(1, 60), epochs=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_covers_each_pair_once(pairs, batch, epochs, seed):
    places = [i for step in range(math.ceil(epochs * pairs / batch)) for i in batch_at(step, batch, pairs, seed)]
    for epoch in range(epochs):
        assert Counter(places[epoch * pairs : (epoch + 1) * pairs]) == Counter(range(pairs))


def test_a_batch_straddles_two_epochs_and_is_full():
    batches = [batch_at(step, 4, 6, 0) for step in range(3)]
    assert [len(batch) for batch in batches] == [4, 4, 4]
    first, second = order(0, 0, 6).tolist(), order(0, 1, 6).tolist()
    assert batches[1] == first[4:] + second[:2]


def test_a_batch_needs_no_step_before_it():
    assert batch_at(7, 4, 6, 1) == [batch_at(step, 4, 6, 1) for step in range(8)][7]


# peak 1, ten steps, of which two rise: 1/2, 1, and then 8 of the schedule.
RATES = {
    "linear": [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
    "constant": [0.5] + [1.0] * 9,
    "cosine": [0.5, 1.0, 1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060],
}


@pytest.mark.parametrize("schedule", RATES)
def test_the_learning_rate_follows_its_schedule(schedule):
    recipe = Recipe(warmup=0.2, schedule=schedule)
    assert [recipe.rate(step, 10, 1.0) for step in range(10)] == pytest.approx(RATES[schedule], abs=1e-6)
    assert recipe.rate(3, 10, 2e-5) == pytest.approx(2e-5 * RATES[schedule][3], rel=1e-5)


def test_without_warmup_the_first_step_has_the_peak():
    assert Recipe(warmup=0.0).rate(0, 4, 3.0) == 3.0


def test_no_step_has_a_rate_of_zero():
    for steps in (1, 2, 3, 17):
        assert all(Recipe().rate(step, steps, 1.0) > 0 for step in range(steps))


def test_steps_are_epochs_times_pairs_over_batch():
    assert Recipe(batch=4, epochs=1.0).steps(22) == 6  # 5.5 to the even neighbour
    assert Recipe(batch=4, epochs=2.0).steps(22) == 11
    assert Recipe(batch=32, epochs=0.01).steps(40) == 1
