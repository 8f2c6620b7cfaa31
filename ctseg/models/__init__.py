"Networks by name. Written by hand; the modules beside it are exported from notebooks."
from ctseg.models.zoo import create_model, list_models, register_model

__all__ = ["create_model", "list_models", "register_model"]
