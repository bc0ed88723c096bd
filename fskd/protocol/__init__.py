"""Protocols: one YAML file that stands for many runs, and the command that checks it."""

from fskd.protocol.schema import Protocol, Run, read_protocol

__all__ = ["Protocol", "Run", "read_protocol"]
