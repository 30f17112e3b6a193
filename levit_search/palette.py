"""Colours and markers of all pictures, which colour-blind people can tell apart.

The colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/); each has a marker of its own, so
that a picture can be read without colours, too.
"""

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
AMBER, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#999999"

COLORS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, BLACK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Matplotlib's names, in the order of :data:`COLORS`."""
