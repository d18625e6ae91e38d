"""The programs of the soak: one file each."""

from e2e.soak.programs import cpp, go, java, nginx, node, postgres, python, redis, shell

PROGRAMS = {program.name: program
            for module in (redis, nginx, postgres, python, node, java, go, shell, cpp)
            for program in module.PROGRAMS}
