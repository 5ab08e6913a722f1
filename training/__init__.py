"""How a detector learns: which anchors answer for which face, and what a wrong answer costs."""
