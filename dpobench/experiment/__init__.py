"""What is requested: settings, options, grids, studies, and what is refused before anything is computed."""

__all__ = ["config", "options", "plugin_files", "studies", "validate"]
