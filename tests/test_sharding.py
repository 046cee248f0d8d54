"""How a launch may be split over devices, from its axis letters."""

import pytest

from gradlab.kernels.runtime.sharding import Split, sharding


def test_every_axis_of_a_product_is_a_way_to_split_it():
    found = sharding("a[M K], b[K N], bias[N] -> y[M N]; sums K; adds bias")
    assert [array.name for array in found.inputs] == ["a", "b", "bias"]
    assert found.splits == (
        Split("M", (0, "whole", "whole"), (0,)),
        Split("K", (1, 0, "term"), ("term",)),
        Split("N", ("whole", 1, 0), (1,)),
    )


def test_an_axis_that_a_result_lacks_is_split_only_if_it_is_summed():
    assert [s.axis for s in sharding("a[M K], b[K N], bias[N] -> y[M N]").splits] == ["M", "N"]
    assert [s.axis for s in sharding("x[N C H W] -> y[N C P Q]; whole C").splits] == ["N"]
    assert sharding("x[M E] -> s[E], z[M E]; sums M").splits[0] == Split("M", (0,), ("term", 0))


def test_what_follows_may_be_split_like_the_others():
    found = sharding("p[M N], g[M N] -> q[M N]; follows g")
    assert found.follows == {1}
    assert found.splits == sharding("p[M N], g[M N] -> q[M N]").splits


def test_a_number_is_no_axis():
    assert [s.axis for s in sharding("s[3 M] -> y[M]").splits] == ["M"]


def test_a_name_that_is_not_there_is_refused():
    for text, wrong in (
        ("x[M] -> y[M]; sums K", "sums is K"),
        ("x[M] -> y[M]; adds b", "adds is b"),
        ("x[M] -> y[M]; follows y", "follows is y"),
    ):
        with pytest.raises(ValueError, match=f"sharding: {wrong}, wanted one of"):
            sharding(text)
