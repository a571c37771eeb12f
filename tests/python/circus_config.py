"""What Circus itself makes of INI files, as one line of JSON per file.

usage: circus_config.py ENVIRONMENT_AS_JSON DIRECTORY FILE...

Circus's own parser, typed getters, watcher and socket classes do the work; nothing of the format is known here. Neither a
process nor a bound socket is made.
"""
import json
import logging
import os
import socket
import sys
import warnings

from circus import config, sockets
from circus.process import Process
from circus.util import parse_env_dict
from circus.watcher import Watcher

# Numbers that stand for the descriptors of sockets, in the order of their names.
FIRST_DESCRIPTOR = 1000


def plain(value):
    """A value of get_config as JSON has it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, bool, float, type(None))) else int(value)


def command(entry, descriptors):
    """The words of worker 1, or why Circus drops the watcher."""
    # Hooks would be imported, and papa contacted; neither changes the words.
    options = dict(entry, hooks={}, use_papa=False)
    try:
        watcher = Watcher.load_from_config(options)
        process = Process(
            watcher.name, 1, watcher.cmd, args=watcher.args, working_dir=watcher.working_dir,
            shell=watcher.shell, env=watcher.env, watcher=watcher, spawn=False)
        return {'argv': process.format_args(descriptors)}
    except Exception as error:
        return {'dropped': '%s: %s' % (type(error).__name__, error)}


def socket_of(entry):
    try:
        made = sockets.CircusSocket.load_from_config(dict(entry, use_papa='false'))
    except Exception as error:
        return {'dropped': '%s: %s' % (type(error).__name__, error)}
    fields = {key: plain(getattr(made, key)) for key in (
        'host', 'port', 'path', 'umask', 'backlog', 'interface', 'so_reuseport', 'replace')}
    fields['family'] = int(made.family)
    fields['type'] = int(made.socktype)
    # Its own close would remove the path, whoever listens there.
    socket.socket.close(made)
    return fields


def read(path):
    parser, _ = config.read_config(path)
    sections = {name: dict(parser.items(name, noreplace=True)) for name in parser.sections()}
    parsed = config.get_config(path)
    names = [entry['name'] for entry in parsed['sockets']]
    descriptors = {name: FIRST_DESCRIPTOR + index for index, name in enumerate(names)}
    watchers = {}
    for entry in parsed['watchers']:
        fields = plain(entry)
        fields['environment'] = parse_env_dict(dict(entry['env']))
        fields['command'] = command(entry, descriptors)
        watchers[entry['name']] = fields
    return {
        'sections': sections,
        'circus': {key: plain(value) for key, value in parsed.items()
                   if key not in ('watchers', 'sockets', 'plugins')},
        'watchers': watchers,
        'sockets': {entry['name']: socket_of(entry) for entry in parsed['sockets']},
        'plugins': {entry['name']: plain(entry) for entry in parsed['plugins']},
    }


def main():
    environment, directory, files = sys.argv[1], sys.argv[2], sys.argv[3:]
    logging.disable(logging.CRITICAL)
    warnings.simplefilter('ignore')
    os.environ.clear()
    os.environ.update(json.loads(environment))
    os.chdir(directory)
    for path in files:
        try:
            result = read(path)
        except Exception as error:
            result = {'refused': '%s: %s' % (type(error).__name__, error)}
        print(json.dumps(result))


main()
