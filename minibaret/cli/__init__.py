"""The command line. Bad input is one sentence and exit code 2. The commands (commands.py), and with them PyTorch, are
imported after the arguments were parsed, so that --help is quick;
that of a command with methods' flags imports the methods."""

import sys
import warnings

from ..errors import InputError
from ..process import NOT_READ, NOTHING_DONE, STOPPED, steady_streams, stopped_by_signals
from .options import PROG, parser

OUT_OF_MEMORY = ("out of memory", "allocate memory", "enough memory")  # how PyTorch says it, by device and system


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    with steady_streams():
        with stopped_by_signals(at_once=NOTHING_DONE):
            options = parser(arguments[:1]).parse_args(arguments)
            from .commands import COMMANDS
        try:
            with stopped_by_signals(), warnings.catch_warnings():
                warnings.showwarning = _warn
                options.written = []
                COMMANDS[options.command](options)
                sys.stdout.flush()
        except InputError as error:
            return _fail(str(error))
        except BrokenPipeError:
            return NOT_READ
        except OSError as error:  # a full disk, a folder that may not be searched, a name that is too long
            what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
            return _fail(f"a file could not be read or written: {what}")
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(words in str(error) for words in OUT_OF_MEMORY):
                raise
            said = "there is not enough memory; --memory LIMIT makes an edit take less, or says how much it needs"
            return _fail(said)
        except KeyboardInterrupt as stop:
            written = ", ".join(map(str, options.written)) or "nothing"
            return _fail(f"stopped; {str(stop) or f'{written} was written'}", STOPPED)
    return 0


def _warn(message: Warning, *_) -> None:
    print(f"{PROG}: {message}", file=sys.stderr)


def _fail(sentence: str, code: int = 2) -> int:
    print(f"{PROG}: {sentence}", file=sys.stderr)
    return code
