"""H4MK containers as directories. `hookimpl` marks the codecs of other plugins (see `codecs`)."""
