"""Generates and compiles a ROS message package from its definitions, with the rosidl generators of the wheels alone.

Run as ``python -m clamp_ros.ros.generate_interface DEFINITIONS OUT`` in a process of its own (the generators print,
warn, and look for their templates through AMENT_PREFIX_PATH); `clamp_ros.ros.messages` does so. DEFINITIONS is a folder
named after the package that holds ``msg/*.msg``; OUT receives an importable package of that name, with its libraries
inside. The wheels are a full ament prefix at ``sys.prefix``, so neither CMake nor a ROS installation is needed, and the
type hashes are those of the CMake build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TYPESUPPORTS = ("rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c")
"""The implementations generated: one to serialise, one for Fast DDS to describe the type to other participants."""

RUNTIME_LIBRARIES = (
    "rosidl_runtime_c",
    "rosidl_typesupport_c",
    "rosidl_typesupport_fastrtps_c",
    "rosidl_typesupport_fastrtps_cpp",
    "rmw",
    "rcutils",
    "fastcdr",
)
DEPENDENCY_SUFFIXES = (
    "__rosidl_generator_c.so",
    "__rosidl_generator_py.so",
    "__rosidl_typesupport_c.so",
    *(f"__{name}.so" for name in TYPESUPPORTS),
)


def generate_sources(definitions: Path, work: Path) -> Path:
    """Writes the C, C++ and Python sources of a package.

    Args:
        definitions: folder named after the package, holding ``msg/*.msg``.
        work: an existing empty folder.

    Returns:
        The folder ``work/main/<package>`` with the sources; those of the introspection are in
        ``work/introspection/<package>``, as their names are the same.
    """
    from rosidl_cli.command.translate.api import translate
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

    package, include = definitions.name, [f"{sys.prefix}/share"]
    sources, introspection = work / "main" / package, work / "introspection" / package
    sources.mkdir(parents=True)
    introspection.mkdir(parents=True)
    files = sorted(f"{definitions}:{path.relative_to(definitions)}" for path in definitions.glob("msg/*.msg"))
    idl = translate(
        package_name=package, interface_files=files, include_paths=include, output_format="idl", output_path=sources
    )
    for generator, output in (
        (GenerateC("c"), sources),
        (GenerateCTypesupport("c", typesupport_implementations=list(TYPESUPPORTS)), sources),
        (GenerateFastRTPSCTypesupport("fastrtps_c"), sources),
        (GeneratePython("py", typesupport_implementations=["rosidl_typesupport_c"]), sources),
        (GenerateIntrospectionCTypesupport("introspection_c"), introspection),
    ):
        generator.generate(package, [str(path) for path in idl], include, output_path=output)
    return sources


def compile_package(sources: Path, target: Path) -> None:
    """Compiles the generated sources into the extension module, and the libraries it loads, all in `target`.

    Beside its own, libraries are found at run time as the wheels find theirs, by LD_LIBRARY_PATH. The typesupports are
    looked up by name once a publisher is made; the extension has loaded them by then, from its own folder.

    Raises:
        subprocess.CalledProcessError: the compiler or linker failed; its messages are on standard error.
    """
    import numpy

    package, prefix = sources.name, Path(sys.prefix)
    introspection = sources.parents[1] / "introspection"
    include = [sources.parent, introspection, prefix / "include", sysconfig.get_path("include"), numpy.get_include()]
    include += sorted(path for path in (prefix / "include").iterdir() if path.is_dir())
    flags = ["-O2", "-fPIC", "-w", *(f"-I{path}" for path in include)]

    def compile_one(source: Path) -> None:
        command = ["g++", "-std=c++17"] if source.suffix == ".cpp" else ["gcc"]
        subprocess.run([*command, *flags, "-c", str(source), "-o", f"{source}.o"], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sorted(p for p in sources.parents[1].rglob("*") if p.suffix in (".c", ".cpp"))))
    others = sorted(path.name for path in (prefix / "lib").glob("lib*.so") if path.name.endswith(DEPENDENCY_SUFFIXES))
    system = [f"-L{prefix / 'lib'}", *(f"-l:{name}" for name in others), *(f"-l{name}" for name in RUNTIME_LIBRARIES)]

    def link(name: str, objects: list[Path], own: list[str]) -> str:
        subprocess.run(
            [
                "g++", "-shared", f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN", "-o", str(target / name),
                *map(str, sorted(objects)), f"-L{target}", "-Wl,--no-as-needed", *(f"-l:{library}" for library in own),
                "-Wl,--as-needed", *system,
            ],
            check=True,
        )
        return name

    detail = sources / "msg" / "detail"
    c = link(f"lib{package}__rosidl_generator_c.so", list(detail.glob("*.c.o")), [])
    own = [
        c,
        link(f"lib{package}__rosidl_typesupport_fastrtps_c.so", list(detail.glob("*.cpp.o")), [c]),
        link(f"lib{package}__rosidl_typesupport_introspection_c.so", list(introspection.rglob("*.o")), [c]),
    ]
    extension = [*sources.glob("*.o"), *(sources / "msg").glob("*.o")]
    link(f"{package}_s__rosidl_typesupport_c.so", extension, own)


def generate(definitions: Path, out: Path) -> None:
    """Builds the package and puts it at ``out/<package>``, which must not exist."""
    os.environ["AMENT_PREFIX_PATH"] = os.pathsep.join(filter(None, [sys.prefix, os.environ.get("AMENT_PREFIX_PATH")]))
    package = definitions.name
    with tempfile.TemporaryDirectory(prefix=f"{package}-") as work:
        sources = generate_sources(definitions.resolve(), Path(work))
        target = out / package
        for path in sources.rglob("*.py"):
            (target / path.relative_to(sources)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path.relative_to(sources))
        (target / "__init__.py").touch()
        compile_package(sources, target)


if __name__ == "__main__":
    generate(Path(sys.argv[1]), Path(sys.argv[2]))
