"""A stand-in for Azure SQL that turns what an ODBC driver sends over TDS into `Request`s and a test's `Reply`s into TDS.

Section names in the comments are those of the MS-TDS specification. It speaks TDS 7.2 to 7.4, in the clear unless it is
given a certificate, and knows no SQL: whatever is asked goes to `TdsServer.answer`. What is left out: MARS, cursors,
Encrypt=strict (TDS 8), and parameters of rarer types. Nothing that pyodbc calls while it holds the interpreter's lock
can be answered from the same process: that is `fast_executemany`.
"""

import re
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path


@dataclass(frozen=True)
class Done:
    rows: int | None = None  # how many rows were changed


@dataclass(frozen=True)
class Rows:
    """A result set; a column's type is that of its values: bit, bigint, float(53), nvarchar or datetime2(3)."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]] = ()


@dataclass(frozen=True)
class Info:
    number: int
    message: str


@dataclass(frozen=True)
class Error:
    number: int
    message: str = "refused"
    severity: int = 16  # from 20 on the connection is closed as well


@dataclass(frozen=True)
class Reset:
    """No answer: the connection is reset."""


@dataclass(frozen=True)
class Hang:
    """No answer for so long, or until the server stops; then the connection is closed."""

    seconds: float = 60
    deaf: bool = False  # like a dead line: does not even confirm that the client has cancelled the statement


Reply = Done | Rows | Info | Error | Reset | Hang


@dataclass(frozen=True)
class Request:
    sql: str  # the statement with its markers @P1, @P2; of another procedure its name
    values: tuple[object, ...]
    connection: int  # running number of the login, from 1


@dataclass(frozen=True)
class Login:
    user: str
    password: str
    database: str
    app: str
    access_token: str | None
    encrypt_asked: int  # the ENCRYPTION byte of PRELOGIN: 0 off, 1 on, 2 not supported, 3 required


Answer = Callable[[Request], Reply | Sequence[Reply]]

# 2.2.3.1.1 Packet header: Type and Status
SQL_BATCH, RPC, REPLY, ATTENTION, TRANSACTION_MANAGER, LOGIN7, PRELOGIN = 0x01, 0x03, 0x04, 0x06, 0x0E, 0x10, 0x12
EOM, RESETCONNECTION = 0x01, 0x18  # the second with or without keeping the transaction
# 2.2.6.5 PRELOGIN: options, and the values of ENCRYPTION
VERSION, ENCRYPTION, MARS, FEDAUTHREQUIRED, TERMINATOR = 0x00, 0x01, 0x04, 0x06, 0xFF
ENCRYPT_ON, ENCRYPT_NOT_SUP, ENCRYPT_REQ = 0x01, 0x02, 0x03
# 2.2.6.4 LOGIN7: FeatureExt
FEATURE_FEDAUTH, FEDAUTH_SECURITY_TOKEN = 0x02, 0x01
# 2.2.7.6 DONE: Status
DONE_MORE, DONE_ERROR, DONE_COUNT, DONE_ATTN = 0x01, 0x02, 0x10, 0x20
# 2.2.7.9 ENVCHANGE: Type
DATABASE, PACKET_SIZE, COLLATION_CHANGE, BEGIN, COMMIT, ROLLBACK, RESET_ACK = 1, 4, 7, 8, 9, 10, 18
# 2.2.6.6 RPC Request: ProcID
PROCEDURES = {10: "sp_executesql", 11: "sp_prepare", 12: "sp_execute", 13: "sp_prepexec", 15: "sp_unprepare"}
# 2.2.6.9 Transaction Manager Request: RequestType
TM_BEGIN_XACT, TM_COMMIT_XACT, TM_ROLLBACK_XACT = 5, 7, 8
# 2.2.5.5 Data types
NULLTYPE, INTN, BITN, DECIMALN, NUMERICN, FLTN = 0x1F, 0x26, 0x68, 0x6A, 0x6C, 0x6D
DATEN, TIMEN, DATETIME2N = 0x28, 0x29, 0x2A
BIGVARBIN, BIGVARCHR, BIGBINARY, BIGCHAR, NVARCHAR, NCHAR = 0xA5, 0xA7, 0xAD, 0xAF, 0xE7, 0xEF
IMAGE, TEXT, NTEXT = 0x22, 0x23, 0x63
FIXED = {0x30: "<B", 0x32: "<?", 0x34: "<h", 0x38: "<i", 0x3B: "<f", 0x3E: "<d", 0x7F: "<q"}
COLLATION = bytes.fromhex("0904d00034")  # SQL_Latin1_General_CP1_CI_AS
PLP_NULL, MAX = 0xFFFFFFFFFFFFFFFF, 0xFFFF


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make a certificate and key for localhost with the openssl command."""
    certificate, key = folder / "tds.crt", folder / "tds.key"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    return certificate, key


# ------------------------------------------------------------------------------------------------- what the client says


class Reader:
    """A place in a message."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise ValueError(f"a message of {len(self.data)} bytes ends before {self.at} + {size}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self, length_size: int) -> str:
        return self.take(2 * self.number(length_size)).decode("utf-16-le")

    def more(self) -> bool:
        return self.at < len(self.data)


def read_value(r: Reader) -> object:
    """Read one TYPE_INFO and the value after it."""
    kind = r.number(1)
    if kind == NULLTYPE:
        return None
    if kind in FIXED:
        return struct.unpack(FIXED[kind], r.take(struct.calcsize(FIXED[kind])))[0]
    if kind in (INTN, BITN, FLTN):
        r.number(1)  # the declared size; the value has its own
        data = r.take(r.number(1))
        return read_simple(kind, data) if data else None
    if kind in (DECIMALN, NUMERICN):
        scale = r.take(3)[2]
        data = r.take(r.number(1))
        return Decimal(int.from_bytes(data[1:], "little") * (1 if data[0] else -1)).scaleb(-scale) if data else None
    if kind in (DATEN, TIMEN, DATETIME2N):
        scale = 0 if kind == DATEN else r.number(1)
        data = r.take(r.number(1))
        return read_time(kind, scale, data) if data else None
    if kind in (BIGVARBIN, BIGVARCHR, BIGBINARY, BIGCHAR, NVARCHAR, NCHAR, IMAGE, TEXT, NTEXT):
        return read_string(kind, r)
    raise NotImplementedError(f"a parameter of the type 0x{kind:02X}")


def read_simple(kind: int, data: bytes) -> object:
    if kind == FLTN:
        return struct.unpack("<d" if len(data) == 8 else "<f", data)[0]
    number = int.from_bytes(data, "little", signed=len(data) > 1)  # a tinyint has no sign
    return bool(number) if kind == BITN else number


def read_time(kind: int, scale: int, data: bytes) -> object:
    """2.2.5.5.1.8: the time comes first, in units of 10^-scale s; then the day, from 0001-01-01."""
    if kind == DATEN:
        return date.fromordinal(int.from_bytes(data, "little") + 1)
    size = 3 if scale < 3 else 4 if scale < 5 else 5
    since_midnight = timedelta(microseconds=int.from_bytes(data[:size], "little") * 10 ** (7 - scale) // 10)
    if kind == TIMEN:
        return (datetime.min + since_midnight).time()
    day = date.fromordinal(int.from_bytes(data[size : size + 3], "little") + 1)
    return datetime.combine(day, time()) + since_midnight


def read_string(kind: int, r: Reader) -> str | bytes | None:
    length_size = 4 if kind in (IMAGE, TEXT, NTEXT) else 2
    size = r.number(length_size)
    collation = b"" if kind in (BIGVARBIN, BIGBINARY, IMAGE) else r.take(5)
    data: bytes | None
    if length_size == 2 and size == MAX:
        data = read_plp(r)
    else:
        length = r.number(length_size)
        data = None if length == (1 << 8 * length_size) - 1 else r.take(length)
    if data is None or not collation:
        return data
    if kind in (NVARCHAR, NCHAR, NTEXT):
        return data.decode("utf-16-le")
    return data.decode("utf-8" if collation[3] & 0x04 else "cp1252", "replace")  # 2.2.5.1.2: fUTF8


def read_plp(r: Reader) -> bytes | None:
    """2.2.5.2.3 Partially length-prefixed bytes: chunks until an empty one; the total in front may be unknown."""
    if r.number(8) == PLP_NULL:
        return None
    chunks = []
    while size := r.number(4):
        chunks.append(r.take(size))
    return b"".join(chunks)


def read_calls(r: Reader) -> Iterator[tuple[str, list[object]]]:
    """2.2.6.6 RPC Request: one or more procedures with their parameters."""
    while r.more():
        length = r.number(2)
        if length == 0xFFFF:
            number = r.number(2)
            name = PROCEDURES.get(number, f"procedure {number}")
        else:
            name = r.take(2 * length).decode("utf-16-le").lower().rpartition(".")[2].strip("[]")
        r.number(2)  # OptionFlags
        values = []
        while r.more():
            name_length = r.number(1)
            if name_length >= 0xFE:  # BatchFlag or NoExecFlag: another procedure follows
                break
            r.take(2 * name_length + 1)  # the parameter's name, and StatusFlags
            values.append(read_value(r))
        yield name, values


def read_login(data: bytes, encrypt_asked: int) -> tuple[Login, int, bytes]:
    """Read LOGIN7; also its packet size, and its TDS version the way LOGINACK wants it."""
    version, packet_size = data[7:3:-1], int.from_bytes(data[8:12], "little") or 4096  # 0 leaves it to us

    def field(at: int) -> bytes:
        offset, length = struct.unpack_from("<HH", data, at)
        return data[offset : offset + 2 * length]

    token = None
    if data[27] & 0x10:  # OptionFlags3: fExtension
        (pointer,) = struct.unpack_from("<H", data, 56)
        r = Reader(data, struct.unpack_from("<I", data, pointer)[0])
        while (feature := r.number(1)) != TERMINATOR:
            content = Reader(r.take(r.number(4)))
            if feature == FEATURE_FEDAUTH:
                if content.number(1) >> 1 != FEDAUTH_SECURITY_TOKEN:
                    raise NotImplementedError("federated authentication without a security token")
                token = content.take(content.number(4)).decode("utf-16-le")
    password = bytes((b ^ 0xA5) >> 4 | (b ^ 0xA5) << 4 & 0xF0 for b in field(44))
    user, secret, database, app = (f.decode("utf-16-le") for f in (field(40), password, field(68), field(48)))
    return Login(user, secret, database, app, token, encrypt_asked), packet_size, version


# ------------------------------------------------------------------------------------------------ what the server says


def text(value: str, length_size: int = 1) -> bytes:
    data = value.encode("utf-16-le")
    return (len(data) // 2).to_bytes(length_size, "little") + data


def env_change(kind: int, new: bytes = b"\0", old: bytes = b"\0") -> bytes:
    return struct.pack("<BHB", 0xE3, 1 + len(new) + len(old), kind) + new + old


def message_token(reply: Info | Error) -> bytes:
    token, severity = (0xAA, reply.severity) if isinstance(reply, Error) else (0xAB, 0)
    body = struct.pack("<iBB", reply.number, 1, severity) + text(reply.message, 2)
    body += text("stand-in") + text("") + struct.pack("<i", 1)
    return struct.pack("<BH", token, len(body)) + body


def done_token(token: int, status: int, rows: int | None = None) -> bytes:
    return struct.pack("<BHHQ", token, status | (DONE_COUNT if rows is not None else 0), 0, rows or 0)


def column(name: str, values: list[object]) -> tuple[bytes, Callable[[object], bytes]]:
    """One column of COLMETADATA and how to write its values (None is written alike for all but strings)."""
    kinds = {type(v) for v in values if v is not None}

    def lead(data: bytes) -> bytes:
        return len(data).to_bytes(1, "little") + data

    write: Callable[[object], bytes] = write_short
    info = struct.pack("<BH", NVARCHAR, 8000) + COLLATION
    if kinds == {bool}:
        info, write = bytes((BITN, 1)), lambda v: lead(b"" if v is None else struct.pack("<?", v))
    elif kinds == {int}:
        info, write = bytes((INTN, 8)), lambda v: lead(b"" if v is None else struct.pack("<q", v))
    elif kinds and kinds <= {int, float}:
        info, write = bytes((FLTN, 8)), lambda v: lead(b"" if v is None else struct.pack("<d", v))
    elif kinds == {datetime}:
        info, write = bytes((DATETIME2N, 3)), lambda v: lead(write_moment(v))
    elif kinds - {str}:
        raise TypeError(f"no column type for {kinds}")
    elif any(isinstance(v, str) and len(v) > 2000 for v in values):  # 4000 UTF-16 units at most in the short form
        info, write = struct.pack("<BH", NVARCHAR, MAX) + COLLATION, write_plp
    return struct.pack("<IH", 0, 1) + info + text(name), write  # UserType, and Flags: fNullable


def write_short(value: object) -> bytes:
    data = str(value).encode("utf-16-le")
    return struct.pack("<H", MAX) if value is None else struct.pack("<H", len(data)) + data


def write_plp(value: object) -> bytes:
    data = str(value).encode("utf-16-le")
    if value is None:
        return struct.pack("<Q", PLP_NULL)
    chunk = struct.pack("<I", len(data)) + data if data else b""
    return struct.pack("<Q", len(data)) + chunk + bytes(4)


def write_moment(value: object) -> bytes:
    if not isinstance(value, datetime):
        return b""
    milliseconds = (value.replace(tzinfo=None) - datetime.combine(value.date(), time())) // timedelta(milliseconds=1)
    return milliseconds.to_bytes(4, "little") + (value.toordinal() - 1).to_bytes(3, "little")


def rows_tokens(result: Rows) -> bytes:
    """COLMETADATA and a ROW for each row."""
    columns = [column(name, [row[i] for row in result.rows]) for i, name in enumerate(result.columns)]
    rows = (b"\xd1" + b"".join(w(v) for (_, w), v in zip(columns, row, strict=True)) for row in result.rows)
    return b"".join((struct.pack("<BH", 0x81, len(columns)), *(info for info, _ in columns), *rows))


def answer_tokens(replies: Sequence[Reply], procedure: bool, more: bool = False, outputs: bytes = b"") -> bytes:
    """Write the results of one batch or procedure; the last of them, and no other, ends the message unless `more`."""
    parts: list[tuple[bytes, int, int | None]] = []  # tokens, DONE status, row count
    before = b""
    for reply in replies:
        if isinstance(reply, Info):
            before += message_token(reply)
            continue
        if isinstance(reply, Error):
            parts.append((before + message_token(reply), DONE_ERROR, None))
        elif isinstance(reply, Rows):
            parts.append((before + rows_tokens(reply), 0, len(reply.rows)))
        elif isinstance(reply, Done):
            parts.append((before, 0, reply.rows))
        before = b""
    if before or not parts:
        parts.append((before, 0, None))
    failed = any(status for _, status, _ in parts)
    if procedure:  # DONEINPROC after each statement, and one DONEPROC after RETURNSTATUS and the output parameters
        whole = b"".join(tokens + done_token(0xFF, status | DONE_MORE, rows) for tokens, status, rows in parts)
        end = done_token(0xFE, (DONE_ERROR if failed else 0) | (DONE_MORE if more else 0))
        return whole + struct.pack("<Bi", 0x79, 0) + outputs + end
    last = len(parts) - 1
    return b"".join(
        tokens + done_token(0xFD, status | (DONE_MORE if i < last else 0), rows)
        for i, (tokens, status, rows) in enumerate(parts)
    )


def handle_output(handle: int) -> bytes:
    """RETURNVALUE of a statement's handle: the first parameter, an int."""
    head = struct.pack("<BHBBIH", 0xAC, 0, 0, 1, 0, 0)  # ordinal, no name, an output parameter, UserType, Flags
    return head + bytes((INTN, 4, 4)) + struct.pack("<i", handle)


# ------------------------------------------------------------------------------------------------------- the two of them


class Wire:
    """A connection's packets, in the clear or through TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.tls: ssl.SSLObject | None = None
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.packet_size = 4096

    def receive(self, size: int) -> bytes:
        data = self.sock.recv(size)
        if not data:
            raise ConnectionError("the client has gone")
        return data

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if self.tls is None:
                data += self.receive(size - len(data))
                continue
            try:
                part = self.tls.read(size - len(data))
            except ssl.SSLWantReadError:
                self.incoming.write(self.receive(65536))
                continue
            if not part:
                raise ConnectionError("the client has gone")
            data += part
        return data

    def packet(self) -> tuple[int, int, bytes]:
        kind, status, length = struct.unpack(">BBH4x", self.read(8))
        return kind, status, self.read(length - 8)

    def message(self) -> tuple[int, int, bytes]:
        """Return the type, the first packet's status and the data of the next message."""
        kind, first, data = self.packet()
        status, parts = first, [data]
        while not status & EOM:
            _, status, data = self.packet()
            parts.append(data)
        return kind, first, b"".join(parts)

    def send(self, data: bytes, kind: int = REPLY) -> None:
        room = self.packet_size - 8
        for number, at in enumerate(range(0, len(data), room), 1):
            part = data[at : at + room]
            status = EOM if at + room >= len(data) else 0
            packet = struct.pack(">BBHHBB", kind, status, len(part) + 8, 0, number % 256, 0) + part
            if self.tls is not None:
                self.tls.write(packet)
                packet = self.outgoing.read()
            self.sock.sendall(packet)

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands inside of PRELOGIN packets; after that TLS carries the packets."""
        tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                if self.outgoing.pending:
                    self.send(self.outgoing.read(), PRELOGIN)
                self.incoming.write(self.packet()[2])
            else:
                break
        if self.outgoing.pending:
            self.send(self.outgoing.read(), PRELOGIN)
        self.tls = tls

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        raise ConnectionError("reset by the test")

    def hang(self, how: Hang) -> None:
        """Wait; then the connection is over, unless the client has cancelled and hears that it has."""
        self.sock.settimeout(how.seconds)
        while self.message()[0] != ATTENTION or how.deaf:
            pass
        self.sock.settimeout(None)
        self.send(done_token(0xFD, DONE_ATTN))


class TdsServer:
    """A running server: set `answer` and `login` at any time; `requests` and `logins` have what came by."""

    def __init__(self, answer: Answer | None = None, tls: tuple[Path, Path] | None = None) -> None:
        self.answer: Answer = answer or (lambda request: Done())
        self.login: Callable[[Login], Reply | None] = lambda login: None
        self.ended: Callable[[int], None] = lambda connection: None  # told when a connection is over
        self.requests: list[Request] = []
        self.logins: list[Login] = []
        self.failures: list[Exception] = []  # of `answer`, or of reading; the first is raised at the end
        self.port = 0
        self._context: ssl.SSLContext | None = None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._stopped = False
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.maximum_version = ssl.TLSVersion.TLSv1_2  # 1.3 stalls inside of PRELOGIN packets
            self._context.load_cert_chain(*tls)

    @contextmanager
    def running(self) -> Iterator["TdsServer"]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            accepting = threading.Thread(target=self._accept, args=(listener,), daemon=True)
            accepting.start()
            try:
                yield self
            finally:
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() does not
                accepting.join(10)
                with self._lock:
                    self._stopped = True
                    for sock in self._open:
                        with suppress(OSError):
                            sock.shutdown(socket.SHUT_RDWR)
                for thread in self._threads:
                    thread.join(10)
        if self.failures:
            raise self.failures[0]

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open.add(sock)
                thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        wire = Wire(sock)
        try:
            connection = self._sign_in(wire)
            if connection:
                try:
                    Session(self, wire, connection).run()
                finally:
                    self.ended(connection)
        except OSError:  # the client has gone, or the test wanted it so, or it waited too long
            pass
        except Exception as e:
            self.failures.append(e)
        finally:
            with self._lock:
                self._open.discard(sock)
                sock.close()

    def _sign_in(self, wire: Wire) -> int:
        """PRELOGIN, TLS if both want it, LOGIN7. Return the login's number, 0 if it was refused."""
        _, _, data = wire.message()
        asked: dict[int, bytes] = {}
        r = Reader(data)
        while (option := r.number(1)) != TERMINATOR:
            offset, length = struct.unpack(">HH", r.take(4))
            asked[option] = data[offset : offset + length]
        wanted = asked.get(ENCRYPTION, b"\2")[0]
        encrypt = ENCRYPT_NOT_SUP
        if self._context is not None:
            encrypt = ENCRYPT_ON if wanted in (ENCRYPT_ON, ENCRYPT_REQ) else ENCRYPT_REQ
        wire.send(prelogin_answer(encrypt, asked))
        if self._context is not None:
            wire.start_tls(self._context)
        login, packet_size, version = read_login(wire.message()[2], wanted)
        self.logins.append(login)
        number = len(self.logins)
        reply = self.login(login)
        if isinstance(reply, Reset):
            wire.reset()
        elif isinstance(reply, Hang):
            wire.hang(reply)
        elif isinstance(reply, Error):
            wire.send(answer_tokens([reply], procedure=False))
        else:
            wire.send(login_answer(login, packet_size, version))
            wire.packet_size = packet_size
            return number
        return 0


def prelogin_answer(encrypt: int, asked: dict[int, bytes]) -> bytes:
    options = {VERSION: bytes((16, 0, 0, 0, 0, 0)), ENCRYPTION: bytes((encrypt,)), MARS: b"\0"}
    if FEDAUTHREQUIRED in asked:
        options[FEDAUTHREQUIRED] = asked[FEDAUTHREQUIRED]
    head, body = b"", b""
    for option, value in options.items():
        head += struct.pack(">BHH", option, 5 * len(options) + 1 + len(body), len(value))
        body += value
    return head + bytes((TERMINATOR,)) + body


def login_answer(login: Login, packet_size: int, version: bytes) -> bytes:
    ack = b"\x01" + version + text("Microsoft SQL Server") + bytes((16, 0, 0, 0))
    tokens = env_change(DATABASE, text(login.database or "master"), text("master"))
    tokens += env_change(COLLATION_CHANGE, bytes((5,)) + COLLATION)
    tokens += struct.pack("<BH", 0xAD, len(ack)) + ack
    tokens += env_change(PACKET_SIZE, text(str(packet_size)), text("4096"))
    if login.access_token is not None:  # FEATUREEXTACK: nothing to say to a token that came without a nonce
        tokens += struct.pack("<BBIB", 0xAE, FEATURE_FEDAUTH, 0, TERMINATOR)
    return tokens + done_token(0xFD, 0)


# What pyodbc asks for on each new connection string through SQLGetTypeInfo, to know how long a parameter may be:
# the ODBC type, the name and the size of varchar, nvarchar, varbinary and datetime2.
TYPES = {12: ("varchar", 8000), -9: ("nvarchar", 4000), -3: ("varbinary", 8000), 93: ("datetime2", 27)}


def type_info(odbc_type: int) -> Rows:
    """Return the front part of the result of sp_datatype_info."""
    name, size = TYPES.get(odbc_type, ("", 0))
    return Rows(("TYPE_NAME", "DATA_TYPE", "PRECISION"), [(name, odbc_type, size)] if name else [])


class Session:
    """A connection after its login."""

    def __init__(self, server: TdsServer, wire: Wire, connection: int) -> None:
        self.server, self.wire, self.connection = server, wire, connection
        self.prepared: dict[object, str] = {}
        self.handles = 0
        self.transaction = 0

    def run(self) -> None:
        while True:
            kind, status, data = self.wire.message()
            if kind == ATTENTION:  # it crossed our answer
                self.wire.send(done_token(0xFD, DONE_ATTN))
                continue
            r = Reader(data)
            r.take(r.number(4) - 4)  # ALL_HEADERS
            tokens: bytes | None
            if kind == SQL_BATCH:
                sql = data[r.at :].decode("utf-16-le")
                asks_type = re.fullmatch(r"(?:exec )?sp_datatype_info\w* (-?\d+),\d", sql)  # FreeTDS; others by RPC
                replies = [type_info(int(asks_type[1]))] if asks_type else self.ask(sql)
                tokens = None if replies is None else answer_tokens(replies, procedure=False)
            elif kind == RPC:
                tokens = self.call(list(read_calls(r)))
            elif kind == TRANSACTION_MANAGER:
                tokens = self.transact(r)
            else:
                raise NotImplementedError(f"a message of the type 0x{kind:02X}")
            if tokens is not None:
                self.wire.send((env_change(RESET_ACK) if status & RESETCONNECTION else b"") + tokens)

    def ask(self, sql: str, values: Sequence[object] = ()) -> list[Reply] | None:
        """Return the test's answer, or None where there is nothing more to say."""
        request = Request(sql, tuple(values), self.connection)
        self.server.requests.append(request)
        answer = self.server.answer(request)
        replies = list(answer) if isinstance(answer, Sequence) else [answer]
        for reply in replies:
            if isinstance(reply, Reset):
                self.wire.reset()
            elif isinstance(reply, Hang):
                self.wire.hang(reply)
                return None
            elif isinstance(reply, Error) and reply.severity >= 20:
                self.wire.send(answer_tokens(replies, procedure=False))
                raise ConnectionError("ended by an error of the test")
        return replies

    def call(self, calls: list[tuple[str, list[object]]]) -> bytes | None:
        tokens = b""
        for i, (name, values) in enumerate(calls):
            replies, outputs = self.procedure(name, values)
            if replies is None:
                return None
            tokens += answer_tokens(replies, True, i < len(calls) - 1, outputs)
        return tokens

    def procedure(self, name: str, values: list[object]) -> tuple[list[Reply] | None, bytes]:
        """Return the replies of one procedure and its output parameters."""
        if name == "sp_executesql":
            return self.ask(str(values[0]), values[2:]), b""
        if name in ("sp_prepare", "sp_prepexec"):
            self.handles += 1
            self.prepared[self.handles] = str(values[2])
            output = handle_output(self.handles)
            return (self.ask(str(values[2]), values[3:]) if name == "sp_prepexec" else [Done()]), output
        if name == "sp_execute":
            if values[0] not in self.prepared:
                return [Error(8179, f"Could not find prepared statement with handle {values[0]}.")], b""
            return self.ask(self.prepared[values[0]], values[1:]), b""
        if name == "sp_unprepare":
            self.prepared.pop(values[0], None)
            return [Done()], b""
        if name == "sp_describe_undeclared_parameters":  # the driver then goes by the values themselves
            return [Rows(("parameter_ordinal", "name", "suggested_system_type_id"))], b""
        if name.startswith("sp_datatype_info"):
            return [type_info(int(str(values[0])))], b""
        return self.ask(name, values), b""

    def transact(self, r: Reader) -> bytes | None:
        """2.2.6.9: a COMMIT or ROLLBACK is the test's to refuse, or to lose the answer of; BEGIN comes by itself."""
        kind = r.number(2)
        if kind not in (TM_BEGIN_XACT, TM_COMMIT_XACT, TM_ROLLBACK_XACT):
            raise NotImplementedError(f"a transaction manager request of the type {kind}")
        changes, begins = b"", kind == TM_BEGIN_XACT
        if not begins:
            replies = self.ask("COMMIT TRANSACTION" if kind == TM_COMMIT_XACT else "ROLLBACK TRANSACTION")
            if replies is None:
                return None
            if any(isinstance(reply, Error) for reply in replies):
                return answer_tokens(replies, procedure=False)
            ended = COMMIT if kind == TM_COMMIT_XACT else ROLLBACK
            changes = env_change(ended, old=b"\x08" + struct.pack("<Q", self.transaction))
            r.take(r.number(1))  # the name
            begins = bool(r.number(1) & 1)  # fBeginXact: the next transaction begins at once
        if begins:
            self.transaction += 1
            changes += env_change(BEGIN, b"\x08" + struct.pack("<Q", self.transaction))
        return changes + done_token(0xFD, 0)
