import numpy as np
import pytest

from sam2_jax.data.contact_sheet import GAP, TITLE_HEIGHT, contact_sheet, stack_sheets
from sam2_jax.data.overlay import BOX, POSITIVE, draw_overlay, object_color


def clip(num_frames=6, height=40, width=50, num_objects=2):
    images = np.zeros((num_frames, height, width, 3), np.uint8)
    images += np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 30
    masks = np.zeros((num_frames, num_objects, height, width), bool)
    for n in range(num_objects):
        masks[:, n, 10 * n : 10 * n + 8, 5:30] = True
    return images, masks


def test_frames_lie_in_rows_of_four():
    images, masks = clip()
    sheet = contact_sheet(images, masks)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * 40 + GAP, 4 * 50 + 3 * GAP, 3)
    for t in range(6):
        top, left = (40 + GAP) * (t // 4), (50 + GAP) * (t % 4)
        expected = draw_overlay(images[t], masks[t], [1, 2])
        np.testing.assert_array_equal(sheet[top : top + 40, left : left + 50], expected)
    assert (sheet[40 : 40 + GAP] == 255).all()
    assert (sheet[40 + GAP :, 2 * (50 + GAP) :] == 255).all()  # no seventh and eighth frame
    assert not np.shares_memory(sheet, images)


def test_prompts():
    images, masks = clip(2)
    prompts = [{"points": [[40, 30]], "labels": [1]}, {"boxes": [[4, 4, 45, 35]]}]
    plain, drawn = contact_sheet(images, masks), contact_sheet(images, masks, prompts)
    changed = (plain != drawn).any(-1)
    assert (drawn[changed] == POSITIVE).all(-1).any()
    assert (drawn[4, 50 + GAP + 4] == BOX).all()
    assert not changed[:, 50 : 50 + GAP].any()
    with pytest.raises(ValueError, match="zip"):
        contact_sheet(images, masks, prompts[:1])


def test_title():
    images, masks = clip(1)
    sheet = contact_sheet(images, masks, title="a")
    assert sheet.shape == (TITLE_HEIGHT + GAP + 40, 50, 3)
    assert (sheet[:TITLE_HEIGHT] < 128).any()
    np.testing.assert_array_equal(sheet[TITLE_HEIGHT + GAP :], contact_sheet(images, masks))


def test_large_frames_are_shrunk():
    images, masks = clip(1, 1024, 768, 1)
    sheet = contact_sheet(images, masks)
    assert sheet.shape == (512, 384, 3)
    assert (np.abs(sheet[2, 8].astype(int) - np.array(object_color(1)) / 2) < 90).all()


def test_images_without_objects():
    images, masks = clip(3, num_objects=0)
    sheet = contact_sheet(images, masks)
    np.testing.assert_array_equal(sheet[:, :50], images[0])


def test_sheets_are_stacked():
    wide, narrow = np.zeros((10, 1500, 3), np.uint8), np.zeros((20, 600, 3), np.uint8)
    stack = stack_sheets([wide, narrow])
    assert stack.shape == (10 + GAP + 20, 1500, 3)
    assert (stack[10 + GAP :, 600:] == 255).all()
    assert not stack[10 + GAP :, :600].any()
    assert stack_sheets([narrow] * 4).shape == (2 * 20 + GAP, 3 * 600 + 2 * GAP, 3)
