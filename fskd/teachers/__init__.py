"""Teachers: a network, several, or a black box, behind one question that is counted."""
