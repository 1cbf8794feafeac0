"""The room where descriptors are kept and found again."""

__all__: list[str] = []
