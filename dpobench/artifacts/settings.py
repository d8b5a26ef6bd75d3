"""The base of every settings model: frozen, and without unknown keys."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of every settings model: unknown keys and numbers that are not finite are refused, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
