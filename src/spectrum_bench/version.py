"""The one place of the version; CHANGELOG.md says what each brought."""

__version__ = "0.2.0"
