"""The promises of the contract, as data: what the checker proves and what tests cite.

Owns ids and wording; docs/contract.md shows this table. Knows no way to check anything.
"""

import re
from collections.abc import Iterator

from msgspec import Struct


class Promise(Struct, frozen=True):
    """One sentence that a supervisor may rely on.

    Parameters:
        id: stable name; tests cite it.
        section: part of the contract.
        text: the sentence.
        needs: the capability that a runtime reports where it makes this promise; None: every runtime makes it.
    """

    id: str
    section: str
    text: str
    needs: str | None = None


_TABLE = """\
wire:
  W-LINE          A message is a line that ends with LF; one CR before it is dropped, blank lines are skipped.
  W-PIECES        A line that arrives one byte at a time is one request.
  W-UTF8          Text goes through as UTF-8, unchanged; bytes that are no UTF-8 are a parse error.
  W-LINE-MAX      A line of 32 MiB is a request like any other.
  W-LINE-OVER     A longer line gets -32600 with a null id, once, and the connection goes on after its newline.
  W-PARSE         A line that is not JSON gets -32700 with a null id, and the connection goes on.
  W-INVALID       JSON that is no JSON-RPC 2.0 request gets -32600, and the connection goes on.
  W-ID-ECHO       Integers (64 bits, signed or unsigned) and strings are ids, and come back exactly as sent.
  W-ID-BAD        An id of any other JSON type, or of over 256 characters, gets -32600 with a null id.
  W-ID-DUP        Two requests with the same id are two requests: each is answered once.
  W-ANSWER-MAX    No answer is longer than a line: what an error quotes is cut.
  W-BURST         10 000 requests in one write get exactly one answer each.
  W-NOTIFY        A notification gets no answer.
  W-PIPELINE      [wait] Requests are answered as they finish, in any order: one that waits holds up no other.
  W-BATCH         A batch is answered as a batch: one line, one answer for each request with an id or error in it.
  W-BATCH-BAD     An empty batch and one of over 10 000 items get a single -32600.
  W-BATCH-QUIET   A batch of notifications only gets no answer.
  W-METHOD        An unknown method gets -32601.
  W-PARAMS        Params of the wrong shape get -32602, and `data.path` names the field.
  W-PARAMS-NONE   Params may be left out or null where nothing is required; an array is -32602 at `$`.
  W-PARAMS-MORE   Unknown keys in params are ignored.
  W-STDOUT        stdout carries nothing but the protocol.
errors:
  E-DATA          `error.data` has `kind`, `reason`, `fault` (caller, engine or runtime) and `retryable`; `kind` fits
                  the code.
  E-WORDS         Messages of -32000 to -32004 begin with the crate's words ("exec failed: " and so on).
lifecycle:
  L-BEFORE        Before `initialize`, exec and kill are `invalid_state` with reason `not_initialized`.
  L-BEFORE-HEALTH Before `initialize`, `health` is `unhealthy` with "not initialized".
  L-BEFORE-STOP   Before `initialize`, `shutdown` works and the process exits 0.
  L-INIT          `initialize` answers `server`, `capabilities`, and `env` and `workspace_root` where there are any.
  L-TWICE         A second `initialize` is `invalid_state` with reason `already_initialized`.
  L-NAMESPACE     `initialize` without a usable namespace is -32602, and may be tried again.
  L-OPTION        An unknown option is -32602; `data.path` names it and `data.nearest` the nearest known one.
  L-HEALTH        `health` answers one of its three words, and `details` shows the bounds in force.
  L-STOP          `shutdown` (or its alias `stop`) answers `{}` and then the process exits 0.
  L-EOF           EOF on stdin is a shutdown and ends with exit code 0, in the middle of work too.
  L-TERM          SIGTERM and SIGINT are a shutdown and end with exit code 0.
  L-CLOSING       During shutdown `health` is answered; anything else is `invalid_state` with reason `shutting_down`.
  L-NOTHING-LEFT  After shutdown no process and no socket is left.
  L-KILLED        Where the runtime itself is killed, its processes end within a second or at the next `initialize` of
                  the namespace.
exec:
  X-RESULT        `exec` answers a fresh `process_id` and the paths of two sockets.
  X-LISTEN        Both sockets listen before the answer is sent.
  X-MISSING       A missing binary is `exec_failed` with reason `not_found`, not an exit code found later.
  X-NOT-A-PROGRAM A directory as binary is `exec_failed`.
  X-DIR           The process runs in `working_dir`; without one in `workspace_root`, where there is one.
  X-DIR-RELATIVE  A relative `working_dir` starts from where the process would run without one.
  X-DIR-MISSING   A missing working directory is `exec_failed` with reason `bad_working_dir`.
  X-USER          [user] An unknown user is `exec_failed` with reason `unknown_user`.
  X-EMPTY         An empty `cmd` is -32602 at `$.cmd`.
  X-NUL           A NUL character in cmd, env or working_dir is -32602 that names the field.
  X-BIG           An environment value of 1 MiB works, or is `exec_failed` with reason `too_long`.
  X-ENV           The environment is `options.env`, then the env that `initialize` answered, then the request's; the
                  last wins.
  X-OWN-127       [wait] A command that runs and then exits 126 or 127 itself is no failed exec.
  X-NO-STDIN      With `stdin: false` the process reads an empty stdin.
  X-KEY           [key] A second exec with the same `key` answers for the first one's process and starts nothing.
  X-TIMEOUT       [timeout_ms] `timeout_ms` ends the process; its record says `timeout`. After the command's own end it
                  ends nothing.
  X-MERGE         [run] With `merge_stderr` both streams are one on stdio, in the order of the writes where there is
                  `separate_eof`; stderr is at its end at once.
  X-ORPHANS       [run] With `orphans: "kill"` what a command leaves running ends with it.
streams:
  P-ECHO          What the client sends on stdio is stdin, what it receives is stdout.
  P-STDERR        stderr arrives on its own socket and nowhere else.
  P-EARLY         Output written before anyone connects is not lost, not even that of a process that ended.
  P-LOSSLESS      Every byte arrives in order, once, also with a late reader and an exit during the write.
  P-BOTH-WAYS     8 MiB go in and come out through `cat` at the same time, unchanged.
  P-HALF-CLOSE    The client's half-close is EOF on stdin; output flows on.
  P-EOF           Both streams reach EOF when the process has ended; a silent one brings EOF and no bytes.
  P-EOF-OWN       [separate_eof] EOF on stdout arrives while the process lives on and stderr flows.
  P-SLOW          A client that never reads holds up its own process and no other.
  P-REOPEN        [reopen_stdio] /dev/stdin, /dev/stdout and /dev/stderr can be opened again by the process,
                  whatever its `user`.
  P-DRAIN         [separate_eof] What an ended process left behind may go on writing to a stream without a client: that
                  waits until `options.linger_ms` after the exit, or until `options.max_lingering` is reached, is
                  thrown away from then on, and ends no writer.
  P-READING       [separate_eof] A client that reads goes on reading after the exit, for as long as somebody writes and
                  whatever lingers besides.
  P-SECOND        While a client is connected, another connection is accepted and closed at once.
  P-RETURN        A client that leaves and comes back reads the output that waited.
  P-GONE-EOF      A client that leaves is EOF on stdin, by default.
  P-GONE-HOLD     [on_disconnect] With `on_disconnect: "hold"`, stdin stays open for the client's return.
  P-GONE-KILL     [on_disconnect] With `on_disconnect: "kill"`, the process is killed.
sockets:
  S-MODE          The sockets have mode 0600 in a directory of mode 0700, both of the runtime's own user.
  S-PATH          Socket paths are absolute and within 107 bytes.
  S-PEER          A peer of another user is turned away even where it can reach the socket.
  S-UNLINK        Both sockets are unlinked once the process ended and a client read both streams to the end.
  S-LINGER        Sockets nobody reads are unlinked `options.linger_ms` after the exit.
kill:
  K-KILL          `kill` answers `{}` when the process is gone; its streams have reached EOF or do at once.
  K-TERM          TERM comes first: a process that ends itself within the grace time may tidy up.
  K-HARD          A process that ignores TERM is killed after `grace_ms`; with 0 at once.
  K-TREE          [kill_tree] `kill` takes the whole tree, new sessions and orphans included.
  K-ORPHANS       [kill_tree] `kill` of a process that ended takes the orphans it left.
  K-ENDED         `kill` of a process that ended answers `{}`.
  K-UNKNOWN       An unknown process is `invalid_state` with reason `unknown_process`.
records:
  R-CODE          [wait] The exit code is exact: 0 to 255.
  R-SIGNAL        [signal_number] Where a signal ended it, `exit_code` is null, `signal` its number and `reason`
                  `signaled`.
  R-KILLED        [wait] `reason` is `killed` whenever `kill` ended it, even if it exited by itself after TERM.
  R-RUNNING       [wait] `wait` that runs into its `timeout_ms` answers `state: "running"`.
  R-AGAIN         [wait] The record is kept: any number of waits, at once or later, get the same.
  R-SHAPE         [wait] The record has every field of the contract; `timings` are integers, `usage` an object or null.
  R-USAGE         [usage] `usage` tells CPU time and memory of an ended process.
run:
  RUN-RESULT      [run] `run` answers once the command has ended: its exit record, what it wrote to `stdout` and to
                  `stderr`, and how many bytes of each were `dropped`.
  RUN-EXEC        [run] The params that `run` shares with `exec` mean the same, and what does not start is refused with
                  the same errors.
  RUN-BOUNDS      [run] An `output_limit` over 16 MiB, two inputs, base64 that is none and unknown words are -32602,
                  and `data.path` names the field.
  RUN-OUTPUT      [run] Every byte within `output_limit` is in the answer, in order, once, also of 64 runs at once.
  RUN-INPUT       [run] `input` or `input_base64` is stdin, to its end; input that is not read harms nothing.
  RUN-NO-INPUT    [run] Without input, stdin is empty.
  RUN-LIMIT-ENDS  [run] Of a stream over `output_limit` the first and the last half are kept, cut between characters;
                  `dropped` counts the bytes between, and `gap_at` says where in what is given they were.
  RUN-LIMIT-HEAD  [run] With `keep: "head"` its beginning is kept.
  RUN-LIMIT-TAIL  [run] With `keep: "tail"` its end is kept.
  RUN-LIMIT-KILL  [run] With `on_limit: "kill"` a stream over `output_limit` ends the tree, and the record says
                  `killed`.
  RUN-BINARY      [run] A stream that is no UTF-8 comes as `stdout_base64` or `stderr_base64`, and its text is null;
                  any other comes as text.
  RUN-MERGE       [run] With `merge_stderr` both streams are one in `stdout`, in the order of the writes where there is
                  `separate_eof`.
  RUN-DRAIN       [run] Where something that the command left holds a stream, the answer comes at most `drain_ms` after
                  the exit, with what was written until then where there is `separate_eof`.
  RUN-ORPHANS     [run] What a command leaves running lives until `kill` of it; with `orphans: "kill"` it ends with the
                  command.
  RUN-LATE-WRITER [separate_eof] What is written after the answer is thrown away; no writer is ended or held up.
  RUN-KEY         [run] The same `key` joins a run that is in flight, and later gets its record with null for its
                  output; nothing runs twice.
  RUN-TIMEOUT     [run] `timeout_ms` ends the whole tree; the record says `timeout` and comes with what was written.
                  After the command's own end it ends nothing.
  RUN-KILL        [run] `list` shows a run while it lives; `kill` of it ends its tree, and its answer says `killed` and
                  has what was written.
  RUN-OVERLOADED  [run] A run with which all of them hold more than `options.run_output_bytes` is ended: `exec_failed`,
                  `overloaded`, retryable; others go on.
  RUN-LINE        [run] An answer that would not fit a line of 32 MiB is cut as by `output_limit`.
files:
  F-CONTENT       [files] What `write_file` has written, as text or as base64, `read_file` gives back, every byte; where
                  that is no UTF-8, its `text` is null and `base64` has it. Processes see it.
  F-PART          [files] With `offset`, `read_file` gives at most `limit` bytes from there; without, a file larger than
                  `limit` is `io_error` with reason `too_large` and `data.size`.
  F-ERRORS        [files] A call that fails is `io_error` with `reason`, `errno` and the `path` as asked: `not_found`,
                  `is_directory`, `not_directory`, `exists`.
  F-NAMES         [files] `make_dir` makes directories, with `parents` those above; `stat` tells type, size, mode,
                  owner, time and number of names.
  F-LIST          [files] `list_dir` tells all entries of a directory in the order of their names' bytes, at most
                  `limit` on a page, and `next` where there are more, with which as `after` it goes on.
  F-TAR           [files] `write_tar` unpacks an archive into a directory, and `read_tar` packs one: names, contents,
                  modes, times and links.
  F-TAR-EXCLUDE   [files] What matches a pattern of `exclude` is left out of an archive, with all that is in it.
  F-TAR-WITHIN    [files] A member of an archive that is absolute, goes up, leads out by a link or is a device is
                  refused by name, and nothing outside `path` is written.
  F-TAR-LIES      [files] An archive that is none, is cut short or lies about its sizes is `bad_archive`, and leaves no
                  part of a file.
  F-KINDS         [file_helper] A FIFO or a device is refused at once, for reading and for writing; `stat` tells what it
                  is, and with `follow: false` where a link leads.
  F-ATOMIC        [file_helper] With `atomic`, a file has its old content or the new one, never a part, and keeps its
                  mode.
  F-MOVE          [file_helper] `move` gives a file another name, and takes the place of another only with `overwrite`.
  F-REMOVE        [file_helper] `remove` takes a directory that is not empty only with `recursive`, and follows no
                  links.
  F-STREAM        [file_helper] With `stream: true`, contents and archives of any size go by the sockets of a process,
                  whose record has `error` where that failed.
  F-USER          [file_helper] `user` is who reads and writes; an unknown one is `exec_failed` with reason
                  `unknown_user`.
cancel:
  C-EXEC          [cancel] `cancel` of an `exec` that is not yet answered takes it back: its answer is -32800, and
                  nothing is left.
  C-RUN           [cancel] `cancel` of a `run` ends its tree; once nothing is left, the answer of the `run` is -32800.
  C-WAIT          [cancel] `cancel` of a `wait` ends the waiting with -32800; the process lives.
  C-NOTIFY        [cancel] A `cancel` that is a notification cancels too.
  C-UNKNOWN       [cancel] `cancel` of an id that is unknown or answered is `{}` and ends nothing; 1 and "1" are two
                  ids.
  C-DUPLICATE     [cancel] `cancel` of an id that two requests hold is -32602 at `$.id`, and both go on.
extras:
  T-LIST          [list] `list` shows live processes and ended ones whose record is kept, with state, cmd and start.
  T-LIST-PAGES    [list] `list` with `limit` shows at most so many, and `next` where there are more, with which as
                  `after` it goes on; a process that is there all the while is on exactly one page.
  T-LIST-CUT      [list] Of a long `cmd`, `list` shows the beginning, with `cmd_truncated`.
  T-LIST-BLOCKED  [list] `list` shows as `blocked` an output that is full while nobody reads it.
  T-SIGNAL        [signal] `signal` takes a number or a name and reaches the process.
  T-SIGNAL-GROUP  [signal] With `group: true`, `signal` reaches what the process runs in its process group as well.
  T-LIMITS        [limits] `limits` are the process's resource limits by name, soft and hard, and they hold.
  T-LIMITS-NAME   [limits] An unknown name in `limits` is -32602; `data.path` names it and `data.nearest` the nearest
                  known one.
  T-LIMITS-MEMORY [memory_bytes] A command that needs more than its `memory_bytes` ends with reason `oom`, which
                  `memory` and `oom_kills` explain, and nobody else does.
  T-LIMITS-CPUS   [cpus] A command with `cpus` has no more processor time than that; `group` tells how long it was held
                  up.
  T-LIMITS-PIDS   [pids] A command with `pids` and all that it starts have no more processes than that; `group` tells
                  how many forks were refused.
  T-TTY           [tty] With `tty`, stdin, stdout and stderr are one terminal, the process's own and its controlling
                  one; stdio carries it both ways, stderr is at its end at once.
  T-TTY-EOF       [tty] A terminal that is read by lines gives EOF after the client's half-close; output flows on.
  T-TTY-LOSSLESS  [tty] What a process wrote on its terminal arrives, also where it ended before anyone connected.
  T-TTY-SIZE      [tty] A terminal has `tty_size` rows and columns, 24 and 80 by default; `resize` changes them, and
                  SIGWINCH tells of it.
  T-TTY-NONE      [tty] `resize` is -32602 with reason `no_tty` for a process without a terminal, and `{}` for one that
                  ended.
  T-TEMPLATE-NAME [template] A `template` that was not set up is -32602, and `data.path` names the field.
environments:
  ENV-START       [environments] `environment_start` answers `environment`, `lane`, `working_dir` and `user`; a call
                  with that `environment` is about it, and its commands run in that directory.
  ENV-MAIN        [environments] `initialize` starts the environment `main`, and a call that names none means it; with
                  `options.environment: false` there is none.
  ENV-UNKNOWN     [environments] Each call with the name of an environment that there is not is `invalid_state` with
                  reason `unknown_environment`.
  ENV-NAME        [environments] A name is taken once: another start with it is `invalid_state` with reason
                  `environment_exists`.
  ENV-TOKEN       [environments] A second start with the same `token` answers for the first one's environment, while
                  that is on its way and later; with other params it is -32602 at `$.token`.
  ENV-OPTION      [environments] An unknown option is -32602; `data.path` names it and `data.nearest` the nearest
                  known one.
  ENV-FAILS-ALONE [environments] Of many starts at once, one whose image is not there is `start_failed` with reason
                  `image_not_found`; the others come up.
  ENV-APART       [environments] Each environment has its own variables, its own processes in `list`, and its own
                  `max_processes`.
  ENV-APART-FILES [environments] Environments that name a `container` see no file and no process of each other.
  ENV-IDS         [environments] Process ids are unique over all environments: `kill`, `wait` and `signal` need no
                  environment.
  ENV-STOP        [environments] `environment_stop` ends every process of the environment, orphans included, and its
                  sockets; then it and its processes are unknown, and the others go on.
  ENV-STOP-EARLY  [environments] `environment_stop` in the middle of its start answers that with `invalid_state`,
                  reason `environment_stopped`, and leaves nothing.
  ENV-CANCEL      [environments] `cancel` of an `environment_start` that is not yet answered takes it back: its answer
                  is -32800, and nothing is left.
  ENV-RESET       [environments] After `environment_reset` no process that there was lives; their records are kept,
                  with reason `killed` for those that ran, and `gap` for unread output; other environments are
                  untouched.
  ENV-RESET-RUN   [environments] A `run` in flight is answered when its environment is reset or stopped.
  ENV-RESET-FILES [environments] A reset of an environment that names a `container` takes away what was written in it;
                  what is in a `workspace.source` stays.
  ENV-BUSY        [environments] While an environment is being started or reset, a call that needs it is `invalid_state`
                  with reason `environment_busy`, retryable.
  ENV-LIFETIME    [environments] After `lifetime_ms` an environment ends as by `environment_stop`; one without goes on.
  ENV-LIST        [environments] `environment_list` shows each environment with its `state`, `started_at`, how many
                  processes are `live`, and `ends_at` where it has a lifetime.
  ENV-POOL        [environments] What `options.pool` or `pool_set` names is made ready, as `health` shows in
                  `details.pool`; a start that fits works like any other, and an unknown option in it is -32602.
  ENV-SHUTDOWN    [environments] `shutdown` ends all environments with their processes and sockets.
images:
  IMG-BUILD       [images] `image_build` makes an image of a directory of the host: what it answers as `image`, and its
                  `tag`, start environments that have what the Containerfile says, its arguments put in.
  IMG-FAILS       [images] A build that fails is `start_failed` with reason `build_failed`, a message of one line and
                  the end of its output in `data.output`; a directory that is not there is `io_error`, `not_found`.
  IMG-PULL        [images] `image_pull` of an image that is there answers its `id`; one that cannot be had is
                  `start_failed` with reason `image_not_found`.
  IMG-LOAD        [images] `image_load` has the images of an archive, and answers what they are called; what is no
                  archive is `io_error` with reason `bad_archive`.
  IMG-PROGRESS    [images] With `progress`, notifications `progress` with the request's id tell how it comes on, the
                  output of a build in their `text`, all of them before the answer; who does not ask is told nothing.
  IMG-CANCEL      [images] `cancel` of a build in flight ends its steps: its answer is -32800, and there is no image.
"""
"""Sections; in each of them ids, the capability that a promise needs, and the sentence, which goes on in lines that are
indented further."""


def _read(table: str) -> Iterator[Promise]:
    section = ""
    for line in re.sub(r"\n {3,}", " ", table).splitlines():
        if row := re.fullmatch(r"  (\S+) +(?:\[(\w+)\] )?(.+)", line):
            yield Promise(row[1], section, row[3], row[2])
        else:
            section = line.removesuffix(":")


PROMISES = tuple(_read(_TABLE))
BY_ID = {promise.id: promise for promise in PROMISES}


def to_markdown() -> str:
    """The promises as a Markdown table, the one in docs/contract.md."""
    rows = [f"| {p.id} | {p.text} | {f'`{p.needs}`' if p.needs else ''} |" for p in PROMISES]
    return "\n".join(["| id | promise | needs |", "| --- | --- | --- |", *rows]) + "\n"
