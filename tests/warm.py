"""A Python that has imported what takes long and forks for every program: `python -m tests.warm MODULE...`.

It reads one request a line from its standard input, as JSON, and writes the exit status of the program to its output.
"""

import importlib
import json
import os
import runpy
import sys
import types


def requested():
    """Fork for each request, and return it in the child; in the parent, return None when no more can come."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            return request
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def run(arguments, folder, environment, output, error):
    """Do what `python *arguments` does in a folder and an environment, with files for its output."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name, number, mode in ((os.devnull, 0, os.O_RDONLY), (output, 1, os.O_WRONLY), (error, 2, os.O_WRONLY)):
        file = os.open(name, mode)
        os.dup2(file, number)
        os.close(file)
    sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *sys.path[1:]]
    kind, *rest = arguments
    if kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        sys.path.insert(0, folder)
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(kind))
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    if request := requested():
        run(**request)
