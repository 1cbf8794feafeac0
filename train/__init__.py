"""The room where encoders are made. It is empty in this version: training arrives with a later one."""

__all__: list[str] = []
