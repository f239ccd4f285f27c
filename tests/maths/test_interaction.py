import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from stages.maths.interaction import interaction


def cells(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 4))


def test_shares_are_those_of_nested_regressions_on_dummies():
    table = cells()
    a, b = (each.ravel() for each in np.indices(table.shape))
    y = table.ravel()

    def explained(*factors: np.ndarray) -> float:
        x = np.column_stack([factor == level for factor in factors for level in np.unique(factor)])
        return float(LinearRegression().fit(x, y).score(x, y))

    found = interaction(table)
    assert found is not None
    assert [found.first, found.second] == pytest.approx([explained(a), explained(b)])
    assert found.together == pytest.approx(1 - explained(a, b))
    assert found.first + found.second + found.together == pytest.approx(1)


def test_an_additive_table_has_no_interaction_and_a_product_has():
    rows, columns = np.arange(3.0)[:, None], np.array([0.0, 5.0, -2.0, 1.0])
    additive, product = interaction(rows + columns), interaction((rows - 1) * (columns - 1))
    assert additive is not None and additive.together == pytest.approx(0, abs=1e-12)
    assert product is not None and product.together == pytest.approx(1)


def test_shares_do_not_depend_on_order_shift_or_unit():
    table = cells(1)
    one, other = interaction(table), interaction(1e3 - 7 * table[::-1, [2, 0, 3, 1]])
    swapped = interaction(table.T)
    assert one is not None and other is not None and swapped is not None
    assert [other.first, other.second, other.together] == pytest.approx([one.first, one.second, one.together])
    assert [swapped.second, swapped.first] == pytest.approx([one.first, one.second])


def test_equal_cells_and_missing_ones_leave_it_undefined():
    assert interaction(np.full((2, 3), 0.1)) is None
    assert interaction(np.array([[1.0, 2.0], [3.0, np.nan]])) is None
