import numpy as np

from sam2_jax.evaluate.annotator import box_around, next_click


def rectangle(top, bottom, left, right):
    mask = np.zeros((30, 40), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_first_click_is_on_the_centre():
    point, label = next_click(np.zeros((30, 40), bool), rectangle(5, 16, 20, 31))
    assert (point.tolist(), label) == ([25, 10], 1)


def test_the_border_of_the_picture_is_an_outline():
    point, _ = next_click(np.zeros((30, 40), bool), np.ones((30, 40), bool))
    assert point[1] in (14, 15)
    assert 14 <= point[0] <= 25


def test_clicks_go_to_the_deepest_error():
    target = rectangle(5, 16, 10, 21)
    point, label = next_click(rectangle(5, 16, 10, 32), target)  # too much on the right
    assert (point.tolist(), label) == ([26, 10], 0)
    point, label = next_click(rectangle(5, 8, 10, 24), target)  # more is missing than too much
    assert (point.tolist(), label) == ([13, 11], 1)
    both = rectangle(5, 16, 0, 10)
    assert next_click(both, target)[1] == 1  # 11 x 11 are missing, 11 x 10 too much


def test_what_is_right_gets_no_click():
    mask = rectangle(5, 16, 10, 21)
    assert next_click(mask, mask) is None
    assert next_click(mask & False, mask & False) is None


def test_boxes():
    assert box_around(rectangle(5, 16, 10, 21)).tolist() == [10, 5, 21, 16]
    assert box_around(rectangle(5, 6, 10, 11)).tolist() == [10, 5, 11, 6]
