"""Teachers: a network, several, or a black box, behind one question that is counted.

Each kind is a file: ``ensemble`` (several networks), ``black_box`` (a function from images to
probabilities) and ``table`` (probabilities that were collected before). Kinds that keep answers by
index and view, and quantised networks, are to have files of their own beside them.
"""
