"A 54-structure world drawn from a seed: the names that the rest of the package may use."
from ctseg.phantom.challenge import hide_labels, make_phantom, patient_slices, phantom_slices

__all__ = ["hide_labels", "make_phantom", "patient_slices", "phantom_slices"]
