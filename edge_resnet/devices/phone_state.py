"""What a phone is, and how warm: one shell script each, and what their output says.

Works without root; a phone that keeps something to itself leaves it out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CONDITIONS_SCRIPT",
    "FACTS_SCRIPT",
    "PhoneFacts",
    "conditions_from",
    "facts_from",
    "heat_notes",
]

FACTS_SCRIPT = """\
for name in ro.product.manufacturer ro.product.model ro.build.version.release ro.build.version.sdk \
ro.soc.manufacturer ro.soc.model ro.board.platform ro.product.cpu.abilist ro.product.cpu.abi; do
  echo "$name=$(getprop $name)"
done
echo "cores=$(ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l)"
"""
CONDITIONS_SCRIPT = """\
dumpsys thermalservice 2>/dev/null
echo '[battery]'; dumpsys battery 2>/dev/null
echo '[zones]'; for zone in /sys/class/thermal/thermal_zone*; do
  echo "$(cat $zone/type 2>/dev/null)=$(cat $zone/temp 2>/dev/null)"
done
echo '[clocks]'; for core in /sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
  echo "$(cat $core/scaling_cur_freq 2>/dev/null) $(cat $core/scaling_max_freq 2>/dev/null)"
done
echo '[load]'; cat /proc/loadavg 2>/dev/null
echo '[power]'; dumpsys power 2>/dev/null | grep mWakefulness=; settings get global low_power 2>/dev/null
"""
# Android's THERMAL_STATUS_*, PowerManager.
_STATUSES = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
# Its BATTERY_STATUS_*, BatteryManager.
_BATTERY = {2: "Charging", 3: "Discharging", 4: "Not charging", 5: "Full"}
_CPU, _SKIN = 0, 3  # its Temperature.TYPE_*
_SENSIBLE_C = (1.0, 150.0)  # sensors that are not there say 0, -273 or a thousand
_CPU_ZONE = re.compile(r"cpu|soc|tsens|^ap|mtktscpu|big|little", re.IGNORECASE)
# A core's clock jumps between steps of about 5 to 10 %; a turn that ends 10 % lower was held back.
_SLOWER = 0.9


@dataclass(frozen=True)
class PhoneFacts:
    """`abis`: what its programs may be compiled for, the best first. `soc`: its chip, as far as it tells."""

    model: str
    android: str
    soc: str
    abis: tuple[str, ...]
    cores: int

    def __str__(self) -> str:
        return ", ".join(part for part in (self.model, self.soc, self.android) if part)


def facts_from(text: str) -> PhoneFacts:
    """From what FACTS_SCRIPT printed."""
    said = dict(line.strip().partition("=")[::2] for line in text.splitlines())

    def words(*names: str) -> str:
        return " ".join(said[name] for name in names if said.get(name))

    model, maker = said.get("ro.product.model", ""), said.get("ro.product.manufacturer", "")
    release, sdk = said.get("ro.build.version.release", ""), said.get("ro.build.version.sdk", "")
    abis = said.get("ro.product.cpu.abilist") or said.get("ro.product.cpu.abi") or ""
    cores = said.get("cores", "")
    return PhoneFacts(
        model=model if model.lower().startswith(maker.lower()) else f"{maker} {model}".strip(),
        android=f"Android {release} (API {sdk})" if release else "",
        soc=words("ro.soc.manufacturer", "ro.soc.model") or words("ro.board.platform"),
        abis=tuple(abi for abi in abis.split(",") if abi),
        cores=max(1, int(cores)) if cores.isdigit() else 1,
    )


def conditions_from(text: str, cores: int) -> dict[str, Any]:
    """From what CONDITIONS_SCRIPT printed, by the names that benchmark/worker.py has, and a few more.

    MHz by core as it was and as it may be at most; degrees Celsius of the hottest CPU sensor, the skin and
    the battery; `thermal_status` from 0 (none) to 6 (shutdown); `awake`: the screen is on. None: the phone
    does not tell.
    """
    parts = re.split(r"^\[(battery|zones|clocks|load|power)\]\s*$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=False))
    thermal = parts[0]
    battery = dict(line.strip().partition(": ")[::2] for line in sections.get("battery", "").splitlines())
    clocks = [line.split() for line in sections.get("clocks", "").splitlines()]
    status = re.search(r"Thermal Status: (\d+)", thermal)
    load, power = sections.get("load", "").split(), sections.get("power", "")
    awake = re.search(r"mWakefulness=(\w+)", power)
    now, most = ([pair[index] for pair in clocks if len(pair) > index] for index in (0, 1))
    heat = _temperatures(thermal)
    return {
        "mhz": [int(clock) // 1000 for clock in now if clock.isdigit()] or None,
        "mhz_allowed": [int(clock) // 1000 for clock in most if clock.isdigit()] or None,
        "load_per_core": _number(load[0]) / cores if load else None,
        "celsius": _hottest(heat, _CPU) or _hottest_zone(sections.get("zones", "")),
        "skin_celsius": _hottest(heat, _SKIN),
        "battery_celsius": _number(battery["temperature"]) / 10 if battery.get("temperature") else None,
        "battery_percent": _number(battery["level"]) if battery.get("level") else None,
        "battery": _BATTERY.get(int(_number(battery.get("status", "0")))),
        "thermal_status": int(status[1]) if status else None,
        "awake": awake[1] == "Awake" if awake else None,
        "battery_saver": {"0": False, "1": True}.get((power.split() or [""])[-1]),
    }


def heat_notes(before: Mapping[str, Any], after: Mapping[str, Any], fastest_mhz: Sequence[int]) -> list[str]:
    """What says that the phone was slowed down. `fastest_mhz`: of its cores, after each turn."""
    notes = []
    first, last = before.get("thermal_status"), after.get("thermal_status")
    if first is not None and last is not None and last > first:
        notes.append(f"throttled: the thermal status rose from {_status(first)} to {_status(last)}")
    elif last:
        notes.append(f"throttled: the thermal status was {_status(last)} all the time")
    was, is_now = (max(state.get("mhz_allowed") or [0]) for state in (before, after))
    if 0 < is_now < was:
        notes.append(f"throttled: the fastest core may run at {is_now} MHz, {was} MHz before")
    quarter = len(fastest_mhz) // 4
    if quarter:
        start = sum(fastest_mhz[:quarter]) / quarter
        end = sum(fastest_mhz[-quarter:]) / quarter
        if end < _SLOWER * start:
            notes.append(f"throttled: the fastest core ran at {end:.0f} MHz at the end, at first {start:.0f}")
    if before.get("awake") is False:
        notes.append("the phone slept, where Android holds clocks down: wake it, and keep its screen on")
    if before.get("battery_saver"):
        notes.append("the battery saver was on, which holds clocks down")
    return notes


def _status(number: int) -> str:
    return _STATUSES[number] if number < len(_STATUSES) else str(number)


def _temperatures(thermal: str) -> list[tuple[int, float]]:
    """Kind and degrees of each sensor, as they are now where the phone tells, else as it last knew."""
    current = thermal.partition("Current temperatures from HAL:")[2]
    found = re.findall(
        r"Temperature\{mValue=([-\d.]+), mType=(-?\d+)", current.partition("Current cooling")[0] or thermal
    )
    return [(int(kind), _number(value)) for value, kind in found]


def _hottest(heat: Sequence[tuple[int, float]], kind: int) -> float | None:
    low, high = _SENSIBLE_C
    return max((value for which, value in heat if which == kind and low <= value <= high), default=None)


def _hottest_zone(zones: str) -> float | None:
    low, high = _SENSIBLE_C
    pairs = [line.strip().partition("=")[::2] for line in zones.splitlines()]
    values = [_number(value) / 1000 for name, value in pairs if _CPU_ZONE.search(name)]
    return max((value for value in values if low <= value <= high), default=None)


def _number(text: str) -> float:
    """0 where it is none: a phone's maker may have changed any of these formats."""
    try:
        return float(text.strip())
    except ValueError:
        return 0.0
