"""Types and shapes, inferred and checked before anything runs."""


def check(units, data, imported):
    return None


def check_formula(node, source, names):
    return None
