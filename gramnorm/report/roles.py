"""What the arrays of a weight file are: layers, what changes no Lipschitz constant, or something not understood."""

from gramnorm.report.contents import Contents, Layer, Stored, few_axes

__all__ = ["understood"]


def understood(stored: Stored) -> Contents:
    """
    Decide what each array of a file is.

    Parameters
    ----------
    stored : Stored
        The arrays as a reader found them.

    Returns
    -------
    Contents
        Layers, entries that are none, and layers whose values cannot be had.
    """
    contents = Contents(
        skipped=dict(stored.others), failed=dict(stored.unusable), notes=list(stored.notes)
    )
    for name, values in stored.arrays.items():
        if reason := few_axes(name, values.ndim):
            contents.skipped[name] = reason
        else:
            contents.layers.append(Layer(name, values))
    return contents
