"""What is known of a sandbox without asking."""

from abc import abstractmethod

from fastclaw.runtime import EnvironmentInfo


class SandboxFacts:
    """What the answer to a sandbox's start, or to its last reset, says of it."""

    @property
    @abstractmethod
    def info(self) -> EnvironmentInfo:
        """All of it."""

    def __repr__(self) -> str:
        of = f" of {self.image}" if self.image else ""
        return f"<Sandbox {self.id}{of}, {self.info.lane}, user {self.user}, in {self.working_dir}>"

    @property
    def id(self) -> str:
        """Its name at its host."""
        return self.info.environment

    @property
    def image(self) -> str | None:
        """What it was made of; None where it is no container."""
        return self.info.image

    @property
    def container(self) -> str | None:
        """Name of its container."""
        return self.info.container

    @property
    def warnings(self) -> list[str]:
        """Lines for people: what is otherwise than one will think, such as a limit that cannot be held here."""
        return self.info.warnings

    @property
    def working_dir(self) -> str:
        """Where commands start and relative paths too, as an absolute path."""
        return self.info.working_dir

    @property
    def user(self) -> str:
        """Who a command is that names no user: `uid:gid`, or as it was asked for."""
        return self.info.user

    @property
    def home(self) -> str | None:
        """That user's home directory, where it is known."""
        return self.info.home
