import numpy as np
import pytest

from sam2_jax.data import overlay as drawing


def test_overlay_draws_only_where_asked():
    image = np.full((60, 80, 3), 100, np.uint8)
    stack = np.zeros((2, 60, 80), bool)
    stack[0, 10:30, 10:30] = True
    overlay = drawing.draw_overlay(image, stack, [1, 2])
    assert (image == 100).all()
    changed = (overlay != image).any(-1)
    np.testing.assert_array_equal(changed, stack[0])
    inner, edge = overlay[20, 20], overlay[10, 20]
    color = np.array(drawing.object_color(1))
    np.testing.assert_allclose(inner, (100 + color) / 2, atol=1)
    assert edge.sum() > inner.sum()


def test_overlay_has_no_contour_along_the_border():
    image = np.full((20, 30, 3), 100, np.uint8)
    overlay = drawing.draw_overlay(image, np.ones((1, 20, 30), bool), [1])
    assert (overlay == overlay[10, 10]).all()


def test_overlay_prompts():
    image = np.full((100, 120, 3), 100, np.uint8)
    none = np.zeros((0, 100, 120), bool)
    points, labels = [[20, 50], [80, 50], [-500, 3], [119, 99]], [1, 0, 1, 1]
    overlay = drawing.draw_overlay(image, none, [], points, labels, boxes=[[40, 5, 110, 30]])
    assert (overlay[50, 20] == 255).all()
    assert (overlay[52, 22] == drawing.POSITIVE).all()
    assert (overlay[52, 82] == drawing.NEGATIVE).all()
    assert (overlay[5, 40:111] == drawing.BOX).all()
    assert (overlay[15, 60] == 100).all()
    changed = (overlay != image).any(-1)
    changed[40:60] = changed[:32] = False
    changed[90:, 110:] = False
    assert not changed.any()


def test_overlay_errors():
    image, stack = np.zeros((6, 8, 3), np.uint8), np.zeros((1, 6, 8), bool)
    with pytest.raises(ValueError, match="as large as the masks"):
        drawing.draw_overlay(image[:5], stack, [1])
    with pytest.raises(ValueError, match="bool is expected"):
        drawing.draw_overlay(image, stack, [1, 2])


def test_object_colors_are_bright_and_different():
    colors = [drawing.object_color(i) for i in (*range(1, 25), "cat", "dog")]
    assert len(set(colors)) == 26
    assert min(max(color) for color in colors) >= 200
    assert all(0 <= channel <= 255 for i in (0, -5, 10**9) for channel in drawing.object_color(i))
