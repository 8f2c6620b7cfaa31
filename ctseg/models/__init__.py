"Networks by name. Written by hand; everything else in this package is exported from the notebooks 28 to 39."
from ctseg.models.zoo import create_model, list_models, register_model

__all__ = ["create_model", "list_models", "register_model"]
