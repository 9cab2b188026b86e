"""What `forge plugins`, `forge doctor` and `forge models` say: reports of plain data, and their text."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs
import psutil

from forge import __version__, models
from forge.errors import PluginError
from forge.hookspecs import API_VERSION, Component, Probe
from forge.plugins import KINDS, LoadedPlugin, Registry, best

CPU_FEATURES = (
    "avx", "avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""Names, in Linux's spelling, of what matters to the speed of matrix products."""

Report = Mapping[str, Any]


def plugin_report(registry: Registry) -> Report:
    """Everything installed, with probe results; ``conflict`` says why a component can't be asked for."""
    probes = {kind: registry.probe(kind, [component.name for component in _probed(registry, kind)]) for kind in KINDS}
    return {
        "forge": __version__,
        "api": API_VERSION,
        "plugins": [_plugin(plugin, registry, probes) for plugin in registry.plugins],
    }


def _probed(registry: Registry, kind: str) -> list[Component]:
    components = [
        component for plugin in registry.plugins if not plugin.failure for component in plugin.components.get(kind, ())
    ]
    return [component for component in components if component.probe is not None]


def _plugin(plugin: LoadedPlugin, registry: Registry, probes: Mapping[str, Mapping[str, Probe]]) -> Report:
    return {
        "distribution": plugin.distribution,
        "version": plugin.version,
        "entry_point": plugin.name,
        "module": plugin.module,
        "import_seconds": round(plugin.seconds, 6),
        "failure": plugin.failure,
        "components": [
            {
                "kind": kind,
                "name": component.name,
                "summary": component.summary,
                "factory": component.factory,
                "options": [field.name for field in attrs.fields(component.options)] if component.options else [],
                "conflict": _conflict(registry, kind, component.name),
                "probe": attrs.asdict(result) if (result := probes[kind].get(component.name)) else None,
            }
            for kind, offered in plugin.components.items()
            for component in offered
            if plugin.failure is None
        ],
    }


def _conflict(registry: Registry, kind: str, name: str) -> str | None:
    try:
        registry.component(kind, name)
    except PluginError as error:
        return error.message
    return None


def plugin_text(report: Report) -> str:
    """One paragraph a plugin."""
    return "\n\n".join(_plugin_lines(plugin) for plugin in report["plugins"])


def _plugin_lines(plugin: Report) -> str:
    lines = [
        f"{plugin['distribution']} {plugin['version']}  ({plugin['module']}, {plugin['import_seconds'] * 1e3:.1f} ms)"
    ]
    if plugin["failure"] is not None:
        lines.append(f"  FAILED: {plugin['failure']}")
    for component in plugin["components"]:
        lines.append(f"  {component['kind']:12}  {component['name']:12}  {component['summary']}".rstrip())
        if component["conflict"]:
            lines.append(f"{'':30}CONFLICT: {component['conflict']}")
        elif component["probe"]:
            lines.append(f"{'':30}{_probe_text(component['probe'])}")
    return "\n".join(lines)


def _probe_text(probe: Report) -> str:
    if probe["ok"]:
        return f"can run here, score {probe['score']}{': ' * bool(probe['detail'])}{probe['detail']}"
    return f"can't run here: {probe['detail']}"


# -------------------------------------------------------------------------------------------------------------- doctor


def doctor_report(registry: Registry) -> Report:
    """Describe this machine. ``chosen`` is what ``name = "auto"`` means, None if no backend can run."""
    results = registry.probe("backend")
    memory = psutil.virtual_memory()
    chosen = None
    with contextlib.suppress(PluginError):
        chosen = best("backend", results)
    return {
        "forge": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {**_cpu(), "cores": psutil.cpu_count(logical=False), "usable_threads": _usable_threads()},
        "memory": {"total": memory.total, "available": memory.available},
        "torch": _torch_version(),
        "cache_dir": str(models.cache_dir()),
        "backends": {name: attrs.asdict(result) for name, result in results.items()},
        "chosen": chosen,
        "failures": {f"{plugin.distribution} ({plugin.name})": plugin.failure for plugin in registry.failures},
    }


def _cpu() -> dict[str, Any]:
    """https://docs.kernel.org/filesystems/proc.html names the file; elsewhere than on Linux only the name is known."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "features": [feature for feature in CPU_FEATURES if feature in flags],
    }


def _usable_threads() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _torch_version() -> str | None:
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def doctor_text(report: Report) -> str:
    """For people."""
    cpu, memory, chosen = report["cpu"], report["memory"], report["chosen"]
    lines = [
        f"Forge      {report['forge']} on Python {report['python']}, {report['platform']}",
        f"CPU        {cpu['model']}: {cpu['cores']} cores, {cpu['usable_threads']} threads usable here",
        f"           {' '.join(cpu['features']) or 'features unknown'}",
        f"Memory     {memory['available'] / 2**30:.1f} of {memory['total'] / 2**30:.1f} GiB available",
        f"Torch      {report['torch'] or 'not installed'}",
        f"Models     {report['cache_dir']}",
    ]
    for name, probe in report["backends"].items():
        lines.append(f"Backend    {name}: {_probe_text(probe)}{' (chosen by auto)' * (name == chosen)}")
    if chosen is None:
        lines.append("Backend    none can run here")
    lines += [f"Plugin     {name} FAILED: {reason}" for name, reason in report["failures"].items()]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- models


def model_report(registry: Registry) -> Report:
    """Models on this disk, and the short names."""
    return {
        "installed": [
            {"reference": model.reference, "path": str(model.path), "bytes": model.nbytes}
            for model in models.installed(registry)
        ],
        "names": {
            name: {"reference": alias.reference, "summary": alias.summary} for name, alias in models.ALIASES.items()
        },
    }


def model_text(report: Report) -> str:
    """For people."""
    lines = ["On this disk:"]
    lines += [
        f"  {model['reference']}  {model['bytes'] / 1e6:.0f} MB  {model['path']}" for model in report["installed"]
    ] or ["  none yet"]
    lines += ["", "Short names:"]
    lines += [f"  {name}  {entry['summary']}  ({entry['reference']})" for name, entry in report["names"].items()]
    return "\n".join(lines)
