//! A small HTTP server whose answers a closure makes.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

pub struct Request {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
}

/// What a request is answered with.
pub struct Reply {
    status: u16,
    headers: String,
    pieces: Box<dyn Iterator<Item = Vec<u8>> + Send>,
    /// Something to wait for before the last piece.
    last: Option<(&'static str, &'static str)>,
    /// Something that others wait for.
    signal: Option<&'static str>,
    broken: bool,
}

impl Reply {
    pub fn stream(pieces: impl IntoIterator<Item = Vec<u8>, IntoIter: Send + 'static>) -> Self {
        Self {
            status: 200,
            headers: String::new(),
            pieces: Box::new(pieces.into_iter()),
            last: None,
            signal: None,
            broken: false,
        }
    }

    pub fn json(body: &str) -> Self {
        Self::json_status(200, body)
    }

    pub fn json_status(status: u16, body: &str) -> Self {
        Self::stream([body.as_bytes().to_vec()]).status(status)
    }

    pub fn error(status: u16, kind: &str, message: &str) -> Self {
        Self::json_status(status, &format!(r#"{{"kind":"{kind}","message":"{message}"}}"#))
    }

    pub fn signal(name: &'static str) -> Self {
        Self {
            signal: Some(name),
            ..Self::stream([])
        }
    }

    pub fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    /// A last piece that is sent when another request was answered with [`Self::signal`].
    pub fn after(self, signal: &'static str, piece: &'static str) -> Self {
        Self {
            last: Some((signal, piece)),
            ..self
        }
    }

    /// The connection ends before the body does.
    pub fn broken(self) -> Self {
        Self { broken: true, ..self }
    }
}

type Signals = Arc<(Mutex<HashSet<&'static str>>, Condvar)>;

/// Serves until the process ends; the socket's directory is removed with it.
pub struct Fake {
    home: tempfile::TempDir,
}

impl Fake {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let home = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(home.path().join("daemon.sock")).unwrap();
        let answer = Arc::new(answer);
        let signals = Signals::default();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, signals) = (answer.clone(), signals.clone());
                std::thread::spawn(move || serve(&stream.unwrap(), answer.as_ref(), &signals));
            }
        });
        Self { home }
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }
}

fn serve(stream: &UnixStream, answer: &dyn Fn(&Request) -> Reply, signals: &Signals) {
    let Some(request) = read_request(&mut BufReader::new(stream)) else {
        return;
    };
    // A client that went away is what some tests are about.
    let _ = write_reply(stream, answer(&request), signals);
}

fn write_reply(mut stream: &UnixStream, reply: Reply, signals: &Signals) -> std::io::Result<()> {
    let (arrived, changed) = &**signals;
    let framing = if reply.status == 204 {
        ""
    } else {
        "transfer-encoding: chunked\r\n"
    };
    write!(
        stream,
        "HTTP/1.1 {} x\r\n{framing}{}\r\n",
        reply.status, reply.headers
    )?;
    if let Some(name) = reply.signal {
        arrived.lock().unwrap().insert(name);
        changed.notify_all();
    }
    if framing.is_empty() {
        return Ok(());
    }
    let last = reply.last.into_iter().map(|(name, piece)| {
        drop(
            changed
                .wait_while(arrived.lock().unwrap(), |arrived| !arrived.contains(name))
                .unwrap(),
        );
        piece.as_bytes().to_vec()
    });
    for piece in reply.pieces.chain(last) {
        write!(stream, "{:x}\r\n", piece.len())?;
        stream.write_all(&piece)?;
        stream.write_all(b"\r\n")?;
    }
    if !reply.broken {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    let mut next = |reader: &mut dyn BufRead| {
        line.clear();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let first = next(reader)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let (mut length, mut chunked) = (0, false);
    loop {
        let header = next(reader)?.to_ascii_lowercase();
        match header.split_once(": ") {
            None => break,
            Some(("content-length", value)) => length = value.parse().ok()?,
            Some(("transfer-encoding", value)) => chunked = value == "chunked",
            Some(_) => {}
        }
    }
    let mut body = Vec::new();
    loop {
        if chunked {
            length = u64::from_str_radix(&next(reader)?, 16).ok()?;
        }
        reader.take(length).read_to_end(&mut body).ok()?;
        if !chunked {
            break;
        }
        next(reader)?;
        if length == 0 {
            break;
        }
    }
    Some(Request { method, path, body })
}
