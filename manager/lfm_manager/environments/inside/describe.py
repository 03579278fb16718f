"""Run by the user's interpreter (``-I -S``): where it and its standard library lie."""

import json
import os
import platform
import sys
import sysconfig

executable = getattr(sys, "_base_executable", None) or sys.executable
print(
    json.dumps(
        {
            "executable": os.path.realpath(executable),
            "version": "{}.{}.{}".format(*sys.version_info[:3]),
            "implementation": sys.implementation.name,
            "base_prefix": os.path.realpath(sys.base_prefix),
            "stdlib": sysconfig.get_path("stdlib"),
            "platstdlib": sysconfig.get_path("platstdlib"),
            "include": sysconfig.get_path("include") or "",
            "libdir": sysconfig.get_config_var("LIBDIR") or "",
            "soabi": sysconfig.get_config_var("SOABI") or "",
            "machine": platform.machine(),
            "libc": " ".join(platform.libc_ver()).strip(),
            "platlibdir": sys.platlibdir,
            "cache_tag": sys.implementation.cache_tag,
            "abiflags": getattr(sys, "abiflags", ""),
        }
    )
)
