"""Pictures side by side, and heat maps."""

import numpy as np
import torch
from PIL import Image

from minibaret.sheet import PAPER, contact_sheet, heat


def test_heat_is_brightest_where_the_value_is():
    drawn = heat(Image.new("RGB", (8, 8), "grey"), torch.eye(8))
    brightness = torch.from_numpy(np.array(drawn.convert("L"), dtype=np.int64))
    assert brightness.diagonal().min() > brightness[~torch.eye(8, dtype=torch.bool)].max()


def test_a_title_wider_than_the_pictures_widens_the_sheet():
    cell = Image.new("RGB", (32, 32), "red"), ["dog"]
    narrow = contact_sheet([[cell]])
    sheet = np.asarray(contact_sheet([[cell]], "a title that is far wider than the picture under it"))
    assert sheet.shape[1] > 4 * narrow.width
    assert (sheet[:, :4] == PAPER).all() and (sheet[:, -4:] == PAPER).all()  # no letter is cut off
    red = np.argwhere((sheet == (255, 0, 0)).all(-1))
    assert len(red) == 32 * 32 and abs(red[:, 1].mean() - sheet.shape[1] / 2) < 1


def test_a_line_wider_than_its_picture_goes_on_in_the_next():
    red = Image.new("RGB", (64, 64), "red")
    short, long = (np.asarray(contact_sheet([[(red, [text])]])) for text in ("a name", "a_name" * 4 + " of two words"))
    assert len(long) >= len(short) + 2 * 16 and long.shape[1] == 64 + 2 * 8
    assert (long[:, :8] == PAPER).all() and (long[:, -8:] == PAPER).all()  # no letter in the margin


def test_rows_may_differ_in_length_and_places_be_empty():
    red, blue = (Image.new("RGB", (16, 8), colour) for colour in ("red", "blue"))
    sheet = np.asarray(contact_sheet([[(red, ["one", "two lines"]), (None, [])], [(blue, ())]], scale=2))
    for colour in ((255, 0, 0), (0, 0, 255)):
        assert (sheet == colour).all(-1).sum() == 4 * 16 * 8
    places = [np.argwhere((sheet == colour).all(-1)).min(0) for colour in ((255, 0, 0), (0, 0, 255))]
    assert places[0][1] == places[1][1] and places[1][0] - places[0][0] > 16 + 2 * 10  # under two lines of text
