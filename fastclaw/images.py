"""The words of the contract for images: what each call asks for, what it answers, and the interface `ImageRuntime`.

Nothing here does I/O. How an engine is asked is decided in `engine/images.py` and `engine/builds.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, Struct

from fastclaw import limits
from fastclaw.runtime import Runtime

if TYPE_CHECKING:
    from fastclaw.progress import Tell

HostPath = Annotated[str, Meta(pattern=r"^/[^\0]*\Z", max_length=limits.MAX_PATH_CHARS)]
ImageName = Annotated[str, Meta(min_length=1, max_length=limits.MAX_IMAGE_NAME_CHARS, pattern=r"^[^\s\0]+\Z")]
Tag = Annotated[
    str,
    Meta(
        max_length=limits.MAX_IMAGE_NAME_CHARS,
        pattern=r"^([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+((/|\.|__?|-+)[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?\Z",
    ),
]
"""`[HOST[:PORT]/]NAME[:TAG]`, as in the reference grammar of the OCI distribution specification."""
BuildNetwork = Literal["none", "default", "host"]
"""What RUN steps of a build reach."""
ArgName = Annotated[str, Meta(pattern=r"^[^=\0]+\Z")]


class PullImage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image of a registry.

    Parameters:
        image: its reference.
        pull: `always` asks the registry even where there is an image of this name.
        progress: whether it is told how the pull comes on.
    """

    image: ImageName
    pull: Literal["missing", "always"] = "missing"
    progress: bool = False


class BuildImage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image that is built from a directory of this host.

    Parameters:
        directory: the context: what COPY and ADD find.
        file: the Containerfile, relative to it; None is `Containerfile`, else `Dockerfile`.
        tag: what the image is called; None leaves it without a name.
        args: build arguments.
        target: the stage at which the build ends.
        no_cache: nothing of earlier builds is used.
        network: what RUN steps reach. `default` is what the engine gives a container, `host` this host's network.
        progress: whether the output of the build is told.
    """

    directory: HostPath
    file: Annotated[str, Meta(min_length=1, pattern=r"^[^\0]+\Z")] | None = None
    tag: Tag | None = None
    args: dict[ArgName, str] = {}
    target: Annotated[str, Meta(min_length=1)] | None = None
    no_cache: bool = False
    network: BuildNetwork = "none"
    progress: bool = False


class LoadImages(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The images of an archive on this host, as `docker save` and `podman save` write them.

    Parameters:
        archive: a docker-archive or an oci-archive, which may be compressed.
        progress: whether it is told how much has been read.
    """

    archive: HostPath
    progress: bool = False


class ImageResult(Struct, frozen=True, kw_only=True):
    """An image that is there now.

    Parameters:
        image: for `options.image`: a reference, or the id where it has none.
        id: names this very image.
    """

    image: str
    id: str


class LoadedImages(Struct, frozen=True, kw_only=True):
    """What an archive had: for each image a reference, or the id where it has none."""

    images: list[str]


class ImageRuntime(Runtime):
    """A runtime whose environments are made of images, which can be fetched, built and loaded.

    Where the task of a call is cancelled, nothing half-made is left when the cancellation goes on.
    """

    @abstractmethod
    async def image_pull(self, request: PullImage, tell: Tell | None = None) -> ImageResult:
        """Have an image of a registry.

        Raises:
            StartFailed: `image_not_found`, `engine_timeout`, `engine_unavailable`, `engine_error`.
            MethodNotFound: this runtime has no images.
        """

    @abstractmethod
    async def image_build(self, request: BuildImage, tell: Tell | None = None) -> ImageResult:
        """Build an image.

        Raises:
            StartFailed: `build_failed`, with `data.output`; besides the reasons of `image_pull`.
            IoError: the directory or something in it cannot be read: `not_found`, `not_directory`, `permission_denied`,
                `outside`.
            MethodNotFound: this runtime has no images.
        """

    @abstractmethod
    async def image_load(self, request: LoadImages, tell: Tell | None = None) -> LoadedImages:
        """Have the images of an archive.

        Raises:
            IoError: `bad_archive`, or it cannot be read.
            StartFailed: besides `image_not_found` the reasons of `image_pull`.
            MethodNotFound: this runtime has no images.
        """
