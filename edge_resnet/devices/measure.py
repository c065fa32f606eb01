"""Several devices, one after the other: one that is lost does not take the others' results with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edge_resnet.devices.device import Device, DeviceLostError, Job, Measurement, Request
from edge_resnet.errors import MissingToolError
from edge_resnet.progress import Progress

__all__ = ["Found", "measure_all"]


@dataclass
class Found:
    """`measurements`: by device and job. `lost`: why a device has no results or not all, a line each."""

    measurements: dict[str, dict[str, Measurement]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    interrupted: bool = False


def measure_all(
    devices: Sequence[Device],
    jobs: Sequence[Job],
    request: Request,
    progress: Progress,
    images: int | None = None,
) -> Found:
    """Ask each device for each artifact. `images`: so many of the request's are answered on every device;
    None: as many as each can bear.

    Ctrl-C ends the device under way and the rest, and keeps what was found. Raises InputError for what the
    user gave wrongly, before or while measuring.
    """
    found = Found()
    for device in devices:
        asked = _for_device(device, request, images)
        try:
            with progress.stage(device.uri, device.steps(jobs, asked)) as advance:
                found.measurements[device.uri] = device.measure(jobs, asked, advance)
        except DeviceLostError as error:
            found.measurements[device.uri] = error.partial
            found.lost.append(_named(device, str(error)))
        except MissingToolError as error:
            found.lost.append(_named(device, str(error)))
        except KeyboardInterrupt:
            found.interrupted = True
            break
    return found


def _for_device(device: Device, request: Request, images: int | None) -> Request:
    limit = images if images is not None else device.most_images
    if request.pixels is None or limit is None:
        return request
    return replace(request, pixels=request.pixels[:limit])


def _named(device: Device, message: str) -> str:
    return message if device.uri in message else f"{device.uri}: {message}"
