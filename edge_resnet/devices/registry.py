"""Device URIs: which there are, and what each opens, which is imported only then."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from edge_resnet.devices.device import Device
from edge_resnet.errors import InputError

__all__ = ["SCHEMES", "Scheme", "open_device", "open_devices"]


@dataclass(frozen=True)
class Scheme:
    """`opener`: module and function, which takes the URI (all of it). `example`, `what`: for help and lists.

    `kind`: of its figures, as report.json names it.
    """

    name: str
    opener: tuple[str, str]
    example: str
    what: str
    kind: str


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("local", ("local", "open_local"), "local", "this machine", "measured"),
        Scheme("ssh", ("ssh", "open_ssh"), "ssh://user@host", "a Linux board reached by ssh", "measured"),
        Scheme("adb", ("adb", "open_adb"), "adb://SERIAL", "an Android phone: CPU, GPU and NPU", "measured"),
        Scheme("qemu", ("qemu", "open_qemu"), "qemu://cortex-a76", "an emulated ARM or x86 CPU", "emulated"),
        Scheme(
            "qnn-htp", ("qnn", "open_qnn"), "qnn-htp://73", "Qualcomm's Hexagon NPU, emulated", "emulated"
        ),
        Scheme(
            "vela",
            ("vela", "open_vela"),
            "vela://ethos-u55-128",
            "Arm's Ethos-U NPUs, by their compiler",
            "estimated",
        ),
        Scheme("tflm", ("tflm", "open_tflm"), "tflm://host", "TFLite Micro, on this machine", "emulated"),
        Scheme(
            "apple", ("apple", "open_apple"), "apple", "this Mac: Core ML on each compute unit", "measured"
        ),
    )
}


def open_device(uri: str) -> Device:
    """The device that a URI or a name of `edge-resnet devices` stands for; nothing is connected to yet.

    Raises InputError where there is none of that name, or what follows the scheme means nothing.
    """
    name = uri.partition("://")[0]
    if name in SCHEMES:
        module, function = SCHEMES[name].opener
        opener: Callable[[str], Device] = getattr(import_module(f"edge_resnet.devices.{module}"), function)
        return opener(uri)
    from edge_resnet.devices.descriptions import described_names

    described = described_names()
    if uri in described:
        from edge_resnet.devices.predicted import open_described

        return open_described(uri)
    near = difflib.get_close_matches(name, [*SCHEMES, *described], n=1)
    example = SCHEMES[near[0]].example if near and near[0] in SCHEMES else "".join(near)
    hint = f"did you mean {example}?" if near else "`edge-resnet devices` lists them"
    raise InputError(f"--device {uri}: no such device; {hint}")


def open_devices(uris: Sequence[str]) -> list[Device]:
    """Each once, in their order."""
    return [open_device(uri) for uri in dict.fromkeys(uris)]
